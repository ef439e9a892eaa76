"""Embeddings of patients, optionally as of a date, and of codes."""
