"""What makes an encoder fit to share."""
