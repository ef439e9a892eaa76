"""Held-out metrics of a run beside baselines and the oracle."""
