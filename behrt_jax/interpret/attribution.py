"""Attribution: how much each token of a history changes one output of a model.

Histories have a row each, as laid out by `batches.one_a_row`, and `target`, (B,) int, if the output is that of a code.
A score is a function from such columns to (B,) numbers: `functools.partial(next_visit_odds, model, params)`, or a
custom one. The model is not modified. docs/interpretability.md says how far to trust each method.
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
    """Returns the (B,) log odds of the code `columns["target"]` at the only `[MASK]` of each row."""
    inputs, kwargs = model_arguments(columns)
    places = masked_places(columns)[:, None]
    logits = model.apply(params, *inputs, **kwargs, masked_positions=places)[:, 0]
    is_target = jnp.arange(logits.shape[1])[None, :] == columns["target"][:, None]
    return _one(logits, columns["target"]) - jax.nn.logsumexp(jnp.where(is_target, -jnp.inf, logits), axis=1)


def next_visit_odds(model, params, columns: Columns, causal: bool = True) -> jax.Array:
    """Returns the (B,) log odds of the code `columns["target"]` at the visit after the last one of each row.

    `causal` is False for a model trained with `objective.history=random_cut`.
    """
    inputs, kwargs = model_arguments(columns)
    arguments = {**kwargs, "visit_ends": last_places(columns)[:, None], "causal": causal}
    logits, _ = model.apply(params, *inputs, **arguments, method="predict_next_visits")
    return _one(logits[:, 0], columns["target"])


def outcome_logits(model, params, columns: Columns) -> jax.Array:
    """Returns the (B, K) logits of a fine-tuned model; a score selects one of them or combines them.

    `lambda columns: outcome_logits(model, params, columns)[:, 0]` is the log odds of a binary outcome and the log
    hazard of `survival.loss=cox`; `objectives.survival.log_hazard_by` maps the logits of any survival loss to the risk
    by a day.
    """
    inputs, kwargs = model_arguments(columns)
    covariates = {"covariates": columns["covariates"]} if "covariates" in columns else {}
    return model.apply(params, *inputs, **kwargs, **covariates)


def masked_places(columns: Columns) -> jax.Array:
    """Returns the (B,) position of the `[MASK]` of each row."""
    return jnp.argmax(columns["codes"] == MASK, axis=1)


def last_places(columns: Columns) -> jax.Array:
    """Returns the (B,) position of the token of each row that was recorded last; of several, the last."""
    ranks = columns["time_ranks"] if "time_ranks" in columns else 0 * columns["patient_ids"]
    in_time = ranks * ranks.shape[1] + jnp.arange(ranks.shape[1])[None, :]
    return jnp.argmax(jnp.where(columns["patient_ids"] != 0, in_time, -1), axis=1)


def _one(logits: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits, target[:, None], axis=1)[:, 0]


def is_explained(columns: Columns) -> jax.Array:
    """Returns which tokens get attributions, (B, L) bool: codes, static ones too, and of special tokens `[UNK]`."""
    return (columns["codes"] >= UNK) & (columns["patient_ids"] != 0)


def gated(score: Score, columns: Columns, gates: jax.Array, baseline: int = MASK) -> jax.Array:
    """Returns (B,) scores with the code of each token interpolated between a baseline and itself.

    Replaces the embedding of a token's code by baseline + gate x (code - baseline) while `score` runs, in any module
    that reads the code table. A value changes the embedding in proportion to the gate. The token's age, visit and time
    stay.

    Args:
      score: a function of the columns.
      columns: (B, L) each.
      gates: (B, L); 1 gives the code, 0 the baseline. Ignored for tokens without attributions.
      baseline: a token id; `[MASK]` shows a pre-trained model that there is a code, but not which.
    """
    baseline_codes = jnp.where(is_explained(columns), baseline, columns["codes"])

    def intercept(call, args, kwargs, context):
        embeddings = call(*args, **kwargs)
        path = context.module.path[-2:]
        if context.method_name != "__call__" or path not in (("embedding", "codes"), ("embedding", "values")):
            return embeddings
        baseline_embeddings = call(baseline_codes) if path[1] == "codes" else args[0]
        return baseline_embeddings + gates[..., None] * (embeddings - baseline_embeddings)

    with nn.intercept_methods(intercept):
        return score(columns)


def integrated_gradients(
    score: Score, columns: Columns, steps: int = 16, baseline: int = MASK
) -> tuple[jax.Array, jax.Array]:
    """Attributes scores to tokens by integrated gradients (Sundararajan et al. 2017) on the embeddings of codes.

    The path is straight, from all codes replaced by the baseline to the history itself, with Gauss-Legendre quadrature.
    Jit it: `jax.jit(functools.partial(integrated_gradients, score))(columns)`.

    Args:
      score: a function of the columns that treats rows independently.
      columns: (B, L) each.
      steps: number of quadrature nodes; each costs a gradient.
      baseline: see `gated`.

    Returns:
      (B, L) float32 attributions, 0 for tokens without them; and the (B,) completeness gap: score minus baseline score
      minus the sum of a row's attributions, which is 0 up to the quadrature error.
    """
    shape = columns["codes"].shape
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    nodes, weights = (jnp.asarray(part, jnp.float32) for part in ((nodes + 1) / 2, weights / 2))
    slopes = jax.grad(lambda gates: gated(score, columns, gates, baseline).sum())
    attributions = jax.lax.map(lambda step: step[1] * slopes(jnp.full(shape, step[0])), (nodes, weights)).sum(axis=0)
    difference = score(columns) - gated(score, columns, jnp.zeros(shape), baseline)
    return attributions, difference - attributions.sum(axis=1)


def gradient_times_input(score: Score, columns: Columns, baseline: int = MASK) -> jax.Array:
    """Attributes scores to tokens by the gradient at the history times (code - baseline): (B, L), with one gradient."""
    return jax.grad(lambda gates: gated(score, columns, gates, baseline).sum())(jnp.ones(columns["codes"].shape))


def occlusion(score: Score, columns: Columns, units: jax.Array, num_units: int) -> jax.Array:
    """Attributes scores to units of tokens by the drop of the score without each unit, an exact counterfactual.

    Tokens are removed, not masked: the history is laid out as if they had never been recorded (`remove_tokens`).

    Args:
      score: a function of the columns.
      columns: (B, L) each.
      units: (B, L) int, the unit of each token; -1 for none. See `code_units` and `visit_units`.
      num_units: U, larger than any unit; the score is evaluated once for each.

    Returns:
      (B, L) float32, for each token the value of its unit; 0 for tokens without one.
    """
    without = jax.lax.map(lambda unit: score(remove_tokens(columns, units == unit)), jnp.arange(num_units))
    drops = (score(columns)[None] - without).T
    return jnp.where(units < 0, 0.0, jnp.take_along_axis(drops, jnp.maximum(units, 0), axis=1))


def code_units(columns: Columns) -> jax.Array:
    """Numbers the tokens of each row that get attributions from 0, (B, L) int32; -1 for the others."""
    explained = is_explained(columns)
    return jnp.where(explained, jnp.cumsum(explained, axis=1) - 1, -1)


def visit_units(columns: Columns) -> jax.Array:
    """Returns the visit of each token in a visit, `[SEP]` included, (B, L) int32; -1 for the others.

    Visits without a code other than the predicted `[MASK]`, such as that of a prediction token, do not count.
    """
    explained = is_explained(columns) & columns["in_visit"]
    visits, rows = columns["visit_ids"], jnp.arange(explained.shape[0])[:, None]
    has_code = jnp.zeros(explained.shape, bool).at[rows, visits].max(explained)
    removable = columns["in_visit"] & (columns["codes"] != MASK) & jnp.take_along_axis(has_code, visits, axis=1)
    return jnp.where(removable, visits, -1)


def attention_to(model, params, columns: Columns, readers: jax.Array, **arguments) -> tuple[jax.Array, jax.Array]:
    """Returns the attention of the states that a head reads: in the last layer by attention head, and by rollout.

    Attention is not an explanation: a weight shows where a layer attends, not what it uses from there, nor that the
    score would change without it; large weights on tokens without effect are common (Jain and Wallace 2019).

    Args:
      model: a Transformer, with or without a head.
      params: its parameters.
      columns: (B, L) each.
      readers: (B, L) float, the weight with which a head reads each state, summing to 1: `read_from`.
      **arguments: passed to the encoder, such as `causal=True` for next visits.

    Returns:
      (B, H, L) and (B, L); each sums to 1 over tokens.

    Raises:
      ValueError: the model is an LSTM, which has no attention.
    """
    inputs, kwargs = model_arguments(columns)
    _, weights = encode(model, params, *inputs, capture_attention=True, **kwargs, **arguments)
    last = jnp.einsum("bq,bhqk->bhk", readers, weights[-1])
    return last, jnp.einsum("bq,bqk->bk", readers, attention_rollout(weights, columns["patient_ids"]))


def attention_rollout(weights: jax.Array, patient_ids: jax.Array) -> jax.Array:
    """Computes attention rollout (Abnar and Zuidema 2020): the product over layers of (mean over heads + identity) / 2.

    Args:
      weights: (layers, B, H, L, L) from query to key, as `encode(..., capture_attention=True)` returns them.
      patient_ids: (B, L), 0 for padding.

    Returns:
      (B, L, L) from query to source token. Rows sum to 1; those of padding are 0, as are entries between patients who
      share a row.
    """
    same = (patient_ids[:, :, None] == patient_ids[:, None, :]) & (patient_ids != 0)[:, None, :]
    identity = jnp.eye(patient_ids.shape[1])[None] * same
    rollout = identity
    for layer in weights:
        rollout = jnp.matmul(jnp.where(same, layer.mean(axis=1), 0.0) / 2 + identity / 2, rollout)
    return rollout


def read_from(columns: Columns, places: jax.Array | None = None) -> jax.Array:
    """Returns (B, L) weights of the states that a head reads: at (B,) positions, or equal for all tokens (`mean`)."""
    real = (columns["patient_ids"] != 0).astype(jnp.float32)
    if places is None:
        return real / jnp.maximum(real.sum(axis=1, keepdims=True), 1)
    return jax.nn.one_hot(places, real.shape[1])
