"""Evaluation of a run on held-out patients, with baselines and the oracle."""
