"""What drives a prediction, and what if the history were another."""
