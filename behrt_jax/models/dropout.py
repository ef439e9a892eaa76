"""Dropout from an integer hash of each element's index, which on CPU is much cheaper than threefry."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def hash_bits(key: jax.Array, size: int) -> jax.Array:
    """Returns `size` pseudo-random uint32 that depend only on the key.

    Applies two rounds of multiply and xor-shift (the low-bias constants of Wellons 2018) to a counter. One word of the
    key is the counter's start; one is mixed in between the rounds.
    """
    start, middle = jax.random.bits(key, (2,), jnp.uint32)
    bits = jax.lax.iota(jnp.uint32, size) + start
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ middle ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) from the RNG stream `dropout`; the kept elements are scaled up.

    Attributes:
      rate: share of elements dropped, 0 <= rate < 1.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        """Returns x with elements dropped; x itself if deterministic or if the rate is 0."""
        if deterministic or self.rate == 0.0:
            return x
        bits = hash_bits(self.make_rng("dropout"), x.size).reshape(x.shape)
        kept = bits >= jnp.uint32(round(self.rate * 2**32))
        return jnp.where(kept, x / (1.0 - self.rate), 0.0)
