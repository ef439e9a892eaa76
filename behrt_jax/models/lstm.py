"""An LSTM encoder as baseline for the Transformer, with the same inputs and heads."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout
from behrt_jax.models.encoder import take_places


class LSTMEncoder(nn.Module):
    """A stack of LSTM layers (Hochreiter and Schmidhuber 1997), reset at each patient, and a layer normalisation.

    Attributes:
      config: architecture; the stack has `num_layers` layers of width `hidden_dim`.
    """

    config: BEHRTConfig

    @nn.compact
    def __call__(
        self,
        x,
        patient_ids,
        visit_ids,
        positions,
        years,
        deterministic: bool = True,
        causal: bool = True,
        time_ranks=None,
        places=None,
    ) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); a token's state depends on its patient's tokens up to and including it.

        Tokens are read in the order of `time_ranks` (B, L), ties in row order; without `time_ranks`, in row order.
        With `places` (B, K), returns the (B, K, D) states at these indices.
        """
        del visit_ids, positions, years, causal  # an LSTM always reads from past to future
        inverse = None
        if time_ranks is not None:
            is_padding = patient_ids == 0  # sorted last; each patient's tokens become contiguous
            order = jnp.lexsort((time_ranks, patient_ids, is_padding.astype(jnp.int32)))
            inverse = jnp.argsort(order, axis=1)
            patient_ids = jnp.take_along_axis(patient_ids, order, axis=1)
            x = take_places(x, order)
        same_patient = patient_ids[:, 1:] == patient_ids[:, :-1]
        same_patient = jnp.pad(same_patient, ((0, 0), (1, 0)))
        for layer in range(self.config.num_layers):
            cell = nn.OptimizedLSTMCell(self.config.hidden_dim, name=f"layer_{layer}")
            start = (jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[:, 0]))
            cell(start, x[:, 0])  # creates the parameters; nn.scan needs a newer JAX than jax-metal supports
            step = functools.partial(_step, *cell.unbind())
            _, states = jax.lax.scan(step, start, (x.swapaxes(0, 1), same_patient.swapaxes(0, 1)))
            x = Dropout(self.config.dropout)(states.swapaxes(0, 1), deterministic)
        if inverse is not None:
            x = take_places(x, inverse)
        x = x if places is None else take_places(x, places)
        return nn.LayerNorm(name="norm")(x)


def _step(cell: nn.OptimizedLSTMCell, variables, carry: tuple[jax.Array, jax.Array], inputs: tuple):
    x, same_patient = inputs
    state = tuple(jnp.where(same_patient[:, None], part, 0.0) for part in carry)
    return cell.apply(variables, state, x)
