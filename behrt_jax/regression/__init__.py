"""Regressions on code counts: Cox and ridge regression, and their features."""
