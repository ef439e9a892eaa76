"""Prediction labels: label files, tasks that make labels from MEDS events, and follow-up."""
