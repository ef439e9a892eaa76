"""The LSTM encoder that survival models of EHR are compared with, on the same inputs and heads."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout


class LSTMEncoder(nn.Module):
    """A stack of LSTM layers (Hochreiter and Schmidhuber 1997) that begin anew at each patient, and a normalisation.

    Attributes:
      config: sizes; `hidden_dim` and `num_layers` are those of the stack.
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
    ) -> jax.Array:
        """Maps (B, L, D) to (B, L, D); a token's state depends on its patient's tokens up to it.

        Tokens are read in the order of `time_ranks` (B, L), those of one time as they stand; without it, as they stand.
        """
        del visit_ids, positions, years, causal  # it reads from the past to the future, whatever is asked
        back = None
        if time_ranks is not None:
            is_padding = patient_ids == 0  # last, so that each patient's tokens lie side by side
            order = jnp.lexsort((time_ranks, patient_ids, is_padding.astype(jnp.int32)))
            back = jnp.argsort(order, axis=1)
            patient_ids = jnp.take_along_axis(patient_ids, order, axis=1)
            x = jnp.take_along_axis(x, order[:, :, None], axis=1)
        goes_on = patient_ids[:, 1:] == patient_ids[:, :-1]
        goes_on = jnp.pad(goes_on, ((0, 0), (1, 0)))
        for layer in range(self.config.num_layers):
            cell = nn.OptimizedLSTMCell(self.config.hidden_dim, name=f"layer_{layer}")
            start = (jnp.zeros_like(x[:, 0]), jnp.zeros_like(x[:, 0]))
            cell(start, x[:, 0])  # makes the parameters; nn.scan needs a newer JAX than that for jax-metal
            step = functools.partial(_step, *cell.unbind())
            _, states = jax.lax.scan(step, start, (x.swapaxes(0, 1), goes_on.swapaxes(0, 1)))
            x = Dropout(self.config.dropout)(states.swapaxes(0, 1), deterministic)
        if back is not None:
            x = jnp.take_along_axis(x, back[:, :, None], axis=1)
        return nn.LayerNorm(name="norm")(x)


def _step(cell: nn.OptimizedLSTMCell, variables, carry: tuple[jax.Array, jax.Array], inputs: tuple):
    x, goes_on = inputs
    begun_anew = tuple(jnp.where(goes_on[:, None], part, 0.0) for part in carry)
    return cell.apply(variables, begun_anew, x)
