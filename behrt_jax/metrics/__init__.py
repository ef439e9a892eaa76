"""Metrics with intervals over patients: arrays in, estimates out."""
