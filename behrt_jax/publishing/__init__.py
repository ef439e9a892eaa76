"""Publication of pre-trained encoders: privacy checks, model card and files."""
