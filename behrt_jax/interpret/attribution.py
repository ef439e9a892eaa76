"""Why a model says what it says: how much each token of a history moves one number that the model gives.

Histories lie one a row, as `batches.one_a_row` lays them out, with `target`, (B,) int, where a code is asked for. A
score is a function from such columns to (B,) numbers: `functools.partial(next_visit_odds, model, params)`, or any of
one's own. Models stay as they are. docs/interpretability.md says what each method is worth.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.data.vocabulary import MASK, UNK
from behrt_jax.interpret.counterfactuals import remove_tokens
from behrt_jax.models.behrt import encode
from behrt_jax.models.inputs import model_arguments

Columns = dict[str, Any]
Score = Callable[[Columns], jax.Array]


def masked_odds(model, params, columns: Columns) -> jax.Array:
    """Returns the (B,) log odds of the code `columns["target"]` behind the one `[MASK]` of each row."""
    inputs, named = model_arguments(columns)
    places = masked_places(columns)[:, None]
    logits = model.apply(params, *inputs, **named, masked_positions=places)[:, 0]
    own = jnp.arange(logits.shape[1])[None, :] == columns["target"][:, None]
    return _one(logits, columns["target"]) - jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), axis=1)


def next_visit_odds(model, params, columns: Columns, causal: bool = True) -> jax.Array:
    """Returns the (B,) log odds of the code `columns["target"]` at the visit after each row's last.

    `causal` is False for a model trained with `objective.history=random_cut`.
    """
    inputs, named = model_arguments(columns)
    arguments = {**named, "visit_ends": last_places(columns)[:, None], "causal": causal}
    logits, _ = model.apply(params, *inputs, **arguments, method="predict_next_visits")
    return _one(logits[:, 0], columns["target"])


def outcome_logits(model, params, columns: Columns) -> jax.Array:
    """Returns the (B, K) logits of a fine-tuned model; a score is one of them, or a function of all of them.

    `lambda columns: outcome_logits(model, params, columns)[:, 0]` is the log odds of a binary outcome and the log
    hazard of `survival.loss=cox`; `objectives.survival.log_hazard_by` maps the logits of any survival loss to the risk
    by a day.
    """
    inputs, named = model_arguments(columns)
    covariates = {"covariates": columns["covariates"]} if "covariates" in columns else {}
    return model.apply(params, *inputs, **named, **covariates)


def masked_places(columns: Columns) -> jax.Array:
    """Returns the (B,) place of the `[MASK]` of each row."""
    return jnp.argmax(columns["codes"] == MASK, axis=1)


def last_places(columns: Columns) -> jax.Array:
    """Returns the (B,) place of the token of each row that was recorded last, the last of several."""
    ranks = columns["time_ranks"] if "time_ranks" in columns else 0 * columns["patient_ids"]
    in_time = ranks * ranks.shape[1] + jnp.arange(ranks.shape[1])[None, :]
    return jnp.argmax(jnp.where(columns["patient_ids"] != 0, in_time, -1), axis=1)


def _one(logits: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]


def is_explained(columns: Columns) -> jax.Array:
    """Returns which tokens are explained, (B, L) bool: codes, static ones too, and no special token but `[UNK]`."""
    return (columns["codes"] >= UNK) & (columns["patient_ids"] != 0)


def gated(score: Score, columns: Columns, gates: jax.Array, baseline: int = MASK) -> jax.Array:
    """Returns (B,) scores with the code of each token as far as its gate is open.

    The embedding of a token's code is replaced by baseline + gate x (code - baseline) while `score` runs, in whatever
    module reads the code table; age, visit and time of the token stay.

    Args:
      score: of the columns.
      columns: (B, L) each.
      gates: (B, L); 1 is the code, 0 the baseline. Those of tokens that are not explained are not read.
      baseline: a token; `[MASK]`, which tells a pre-trained model that there is a code and not which.
    """
    hidden = jnp.where(is_explained(columns), baseline, columns["codes"])

    def intercept(call, args, kwargs, context):
        found = call(*args, **kwargs)
        if context.method_name != "__call__" or context.module.path[-2:] != ("embedding", "codes"):
            return found
        origin = call(hidden)
        return origin + gates[..., None] * (found - origin)

    with nn.intercept_methods(intercept):
        return score(columns)


def integrated_gradients(
    score: Score, columns: Columns, steps: int = 16, baseline: int = MASK
) -> tuple[jax.Array, jax.Array]:
    """Attributes scores to tokens by integrated gradients (Sundararajan et al. 2017) on the embeddings of codes.

    The path goes straight from all codes replaced by the baseline to the history itself, by the nodes of Gauss and
    Legendre. Jit it: `jax.jit(functools.partial(integrated_gradients, score))(columns)`.

    Args:
      score: of the columns, each row on its own.
      columns: (B, L) each.
      steps: nodes, each of which costs a gradient.
      baseline: see `gated`.

    Returns:
      (B, L) float32, 0 for tokens that are not explained, and (B,) what the sum of a row misses of the score less that
      of the baseline (by the axiom of completeness 0, but for the steps).
    """
    shape = columns["codes"].shape
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    nodes, weights = (jnp.asarray(part, jnp.float32) for part in ((nodes + 1) / 2, weights / 2))
    slopes = jax.grad(lambda gates: gated(score, columns, gates, baseline).sum())
    found = jax.lax.map(lambda step: step[1] * slopes(jnp.full(shape, step[0])), (nodes, weights)).sum(axis=0)
    ends = score(columns) - gated(score, columns, jnp.zeros(shape), baseline)
    return found, ends - found.sum(axis=1)


def gradient_times_input(score: Score, columns: Columns, baseline: int = MASK) -> jax.Array:
    """Attributes scores to tokens by the gradient at the history times (code - baseline): (B, L), one gradient."""
    return jax.grad(lambda gates: gated(score, columns, gates, baseline).sum())(jnp.ones(columns["codes"].shape))


def occlusion(score: Score, columns: Columns, units: jax.Array, num_units: int) -> jax.Array:
    """Attributes scores to units of tokens, by how much a score falls without each: an exact what-if for every unit.

    Tokens are removed, not hidden: the history is laid out as if they had never been recorded (`remove_tokens`).

    Args:
      score: of the columns.
      columns: (B, L) each.
      units: (B, L) int, to which unit a token belongs; -1 for none. See `code_units` and `visit_units`.
      num_units: U, above all units; the score is asked so often.

    Returns:
      (B, L) float32, of each token that of its unit; 0 for those of none.
    """
    without = jax.lax.map(lambda unit: score(remove_tokens(columns, units == unit)), jnp.arange(num_units))
    falls = (score(columns)[None] - without).T
    return jnp.where(units < 0, 0.0, jnp.take_along_axis(falls, jnp.maximum(units, 0), axis=1))


def code_units(columns: Columns) -> jax.Array:
    """Numbers the explained tokens of each row from 0, (B, L) int32; -1 for the others."""
    explained = is_explained(columns)
    return jnp.where(explained, jnp.cumsum(explained, axis=1) - 1, -1)


def visit_units(columns: Columns) -> jax.Array:
    """Returns the visit of each token that lies in one, `[SEP]` too, (B, L) int32; -1 for the others.

    A visit that holds no code but the `[MASK]` asked for, or none at all as the mark of a prediction time, is none.
    """
    explained = is_explained(columns) & columns["in_visit"]
    visits, rows = columns["visit_ids"], jnp.arange(explained.shape[0])[:, None]
    held = jnp.zeros(explained.shape, bool).at[rows, visits].max(explained)
    removable = columns["in_visit"] & (columns["codes"] != MASK) & jnp.take_along_axis(held, visits, axis=1)
    return jnp.where(removable, visits, -1)


def attention_to(model, params, columns: Columns, readers: jax.Array, **arguments) -> tuple[jax.Array, jax.Array]:
    """Returns what the states that a head reads attend to: in the last layer, head by head, and by rollout.

    Attention is not an explanation: a weight says where a layer looked, not what it took from there, nor that the score
    would change without it; large weights on tokens that change nothing are common (Jain and Wallace 2019).

    Args:
      model: a Transformer, with or without a head.
      params: its parameters.
      columns: (B, L) each.
      readers: (B, L) float, how much a head reads of each state, of sum 1: `read_from`.
      **arguments: such as `causal=True`, with which next visits are predicted.

    Returns:
      (B, H, L) and (B, L), of sum 1 each.

    Raises:
      ValueError: the model is an LSTM, which has no attention.
    """
    inputs, named = model_arguments(columns)
    _, weights = encode(model, params, *inputs, capture_attention=True, **named, **arguments)
    last = jnp.einsum("bq,bhqk->bhk", readers, weights[-1])
    return last, jnp.einsum("bq,bqk->bk", readers, attention_rollout(weights, columns["patient_ids"]))


def attention_rollout(weights: jax.Array, patient_ids: jax.Array) -> jax.Array:
    """Follows attention through the layers (Abnar and Zuidema 2020): the product of (mean over heads + identity) / 2.

    Args:
      weights: (layers, B, H, L, L) from the query to the key, as `encode(..., capture_attention=True)` gives them. In
        the hierarchical encoder visits attend, and only the rows of their first tokens mean anything.
      patient_ids: (B, L), 0 for padding.

    Returns:
      (B, L, L) from the query to the token it goes back to. Rows sum to 1; those of padding are 0, as are entries
      between patients who share a row.
    """
    same = (patient_ids[:, :, None] == patient_ids[:, None, :]) & (patient_ids != 0)[:, None, :]
    own = jnp.eye(patient_ids.shape[1])[None] * same
    rolled = own
    for layer in weights:
        rolled = jnp.matmul(jnp.where(same, layer.mean(axis=1), 0.0) / 2 + own / 2, rolled)
    return rolled


def read_from(columns: Columns, places: jax.Array | None = None) -> jax.Array:
    """Returns (B, L) shares of the states that a head reads: those at (B,) places, or of all tokens alike (`mean`)."""
    real = (columns["patient_ids"] != 0).astype(jnp.float32)
    if places is None:
        return real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
    return jax.nn.one_hot(places, real.shape[1])
