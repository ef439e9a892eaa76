"""What is predicted: label files, tasks and follow-up."""
