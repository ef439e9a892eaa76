"""Regressions on counts of codes: Cox, ridge, and the features that they read."""
