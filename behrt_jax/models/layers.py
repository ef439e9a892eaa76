"""Dense layer and layer normalisation on the functions of `fused`; parameters as in `nn.Dense` and `nn.LayerNorm`."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models import fused


def ramps(x: jax.Array, knots: tuple[float, ...]) -> jax.Array:
    """Maps (...) numbers to (..., knots - 1): how far each lies between two knots, 0 to 1; NaN counts as 0."""
    low, high = (
        jax.lax.broadcast_to_rank(jnp.asarray(side, jnp.float32), x.ndim + 1) for side in (knots[:-1], knots[1:])
    )
    return jnp.clip((jnp.nan_to_num(x)[..., None] - low) / (high - low), 0.0, 1.0)


class LayerNorm(nn.Module):
    """Layer normalisation (Ba et al. 2016) whose scale and shift are left to the dense layer after it."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, fused.Affine]:
        """Returns (..., D) inputs with mean 0 and variance 1, and the scale and shift."""
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
        shift = self.param("bias", nn.initializers.zeros, x.shape[-1:])
        return fused.normalize(x), fused.Affine(scale, shift)


class Dense(nn.Module):
    """A dense layer.

    Attributes:
      features: O, outputs.
      dtype: of the product; that of the inputs if None.
    """

    features: int
    dtype: jax.typing.DTypeLike | None = None

    @nn.compact
    def weights(self, num_inputs: int, affine: fused.Affine | None = None) -> tuple[jax.Array, jax.Array]:
        """Returns the (num_inputs, O) kernel and the (O,) bias, with the affine map before the layer folded in."""
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (num_inputs, self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if affine is not None:
            kernel, bias = affine.fold(kernel, bias)
        return (kernel, bias) if self.dtype is None else (kernel.astype(self.dtype), bias.astype(self.dtype))

    def __call__(self, x: jax.Array, affine: fused.Affine | None = None) -> jax.Array:
        """Maps (..., I) to (..., O); `affine` is applied to the inputs first."""
        return fused.dense(x if self.dtype is None else x.astype(self.dtype), *self.weights(x.shape[-1], affine))
