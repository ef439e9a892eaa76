"""Tests; the folders mirror `behrt_jax`."""
