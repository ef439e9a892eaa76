"""Training objectives: each turns a batch into losses and metrics."""
