"""Fine-tuning: labelled histories, heads and predictions."""
