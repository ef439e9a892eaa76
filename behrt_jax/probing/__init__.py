"""Few-label probing of a frozen encoder."""
