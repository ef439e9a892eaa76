"""Dropout from an integer hash of the element's index: about free on CPU, where threefry is not."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def hash_bits(key: jax.Array, size: int) -> jax.Array:
    """Returns `size` pseudo-random uint32, a function of the key.

    Two rounds of multiply and xor-shift (the low-bias constants of Wellons 2018) over a counter, with one word of the
    key as the counter's start and one mixed in between the rounds.
    """
    start, middle = jax.random.bits(key, (2,), jnp.uint32)
    bits = jax.lax.iota(jnp.uint32, size) + start
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x7FEB352D)
    bits = (bits ^ middle ^ (bits >> 15)) * jnp.uint32(0x846CA68B)
    return bits ^ (bits >> 16)


class Dropout(nn.Module):
    """Zeroes a share of the elements and scales the rest up (Srivastava et al. 2014); draws from the stream `dropout`.

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
