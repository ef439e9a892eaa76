"""Baselines that do not read sequences, on the same targets as the model."""
