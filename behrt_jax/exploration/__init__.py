"""Exploration of what embeddings encode about diseases and codes."""
