"""What models without a sequence reach on the same targets."""
