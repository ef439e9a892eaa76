"""The encoder and its heads as Flax (linen) modules; independent of the data package."""
