"""Figures of evaluations, as files."""
