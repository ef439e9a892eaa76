"""Data pipeline from MEDS events to packed batches; imports nothing from the models."""
