"""Metrics with bootstrap intervals over patients: arrays in, estimates out."""
