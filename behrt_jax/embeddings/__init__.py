"""Embeddings of patients, at dates too, and of codes."""
