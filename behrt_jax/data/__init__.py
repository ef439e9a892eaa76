"""From MEDS events to packed batches; imports nothing of the models."""
