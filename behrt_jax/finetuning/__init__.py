"""Fine-tuning: labeled histories, the head and predictions."""
