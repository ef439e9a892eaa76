"""Predictions from few labels by a frozen encoder."""
