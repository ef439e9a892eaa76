"""Simulated patients with known truth, and the exact oracle."""
