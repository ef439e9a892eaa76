"""What a user does with a run, each as one function: the commands call these, and so can Python."""
