"""The encoder and its heads, as Flax (linen) modules; imports nothing of the data."""
