"""What a model is trained for: each objective turns a batch into losses and metrics."""
