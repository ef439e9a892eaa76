"""What embeddings hold of diseases and codes."""
