"""Next-visit prediction: the codes of the next visit, and the number of days until it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from behrt_jax.models.encoder import take_places, visit_slots
from behrt_jax.models.fused import absence_loss
from behrt_jax.models.pretraining import CodeQueries
from behrt_jax.objectives.base import Objective, apply_model
from behrt_jax.objectives.config import ObjectiveConfig

DAYS_PER_YEAR = 365.25


class Boundaries(NamedTuple):
    """The visits to predict in a batch, at most K per row: those that start after a code of the patient was recorded.

    Attributes:
      ends: (B, K) int32, index of the last token recorded before each visit began; 0 for unused slots.
      starts: (B, K) int32, index of each visit's first token; 0 for unused slots.
      slots: (B, L) int32, the slot of the visit to predict of each token; K for tokens of no such visit.
      days: (B, K) float32, days from the start of the previous visit to the start of the visit to predict.
      weights: (B, K) float32, 1 for visits to predict and 0 for unused slots.
      codes: (B, L) int32, the codes of the row.
      wanted: (B, L) bool, the tokens to predict: target codes of these visits, each once per visit.
    """

    ends: jax.Array
    starts: jax.Array
    slots: jax.Array
    days: jax.Array
    weights: jax.Array
    codes: jax.Array
    wanted: jax.Array

    @property
    def num_targets(self) -> jax.Array:
        """(B, K) float32, number of target codes in each visit to predict."""
        return self.add_up(self.wanted.astype(jnp.float32))

    def add_up(self, values: jax.Array) -> jax.Array:
        """Sums (B, L) values of tokens by visit to predict: (B, K)."""
        num_slots = self.ends.shape[1]
        add = jax.vmap(lambda slot, value: jnp.zeros(num_slots, value.dtype).at[slot].add(value, mode="drop"))
        return add(self.slots, values)


def find_boundaries(batch: dict[str, jax.Array], is_target: jax.Array, use_sep: bool) -> Boundaries:
    """Finds the visits to predict, and the last token recorded before each began.

    Args:
      batch: the columns of packed rows; without `time_ranks`, each visit counts as recorded at one time.
      is_target: (V,) bool, the codes to predict.
      use_sep: whether `[SEP]` ends each visit; a visit then has at least two tokens, and K = L // 2, else K = L.
    """
    patients, visits, ranks = batch["patient_ids"], batch["visit_ids"], _time_ranks(batch)
    starts, first = visit_slots(patients, visits)
    is_start = starts & (ranks > 1) & jnp.pad(patients[:, 1:] == patients[:, :-1], ((0, 0), (1, 0)))
    num_slots = patients.shape[1] // (2 if use_sep else 1)
    slot_numbers = jnp.cumsum(is_start, axis=1) - 1
    start_slots = jnp.where(is_start, slot_numbers, num_slots)
    indices = jnp.broadcast_to(jnp.arange(is_start.shape[1], dtype=jnp.int32), is_start.shape)

    def scatter(values):
        put = jax.vmap(lambda slot, value: jnp.zeros(num_slots, value.dtype).at[slot].set(value, mode="drop"))
        return put(start_slots, values)

    in_visit = jnp.take_along_axis(is_start, first, axis=1) & (patients != 0)
    slots, codes = jnp.where(in_visit, slot_numbers, num_slots), batch["codes"]
    is_repeat = _find_repeats(slots * len(is_target) + codes)
    starts = scatter(indices)
    owners, start_ranks = (jnp.take_along_axis(values, starts, axis=1) for values in (patients, ranks))
    return Boundaries(
        ends=_last_before(patients, ranks, owners, start_ranks) * (starts > 0),
        starts=starts,
        slots=slots,
        days=scatter(batch["time_deltas"]),
        weights=scatter(is_start.astype(jnp.float32)),
        codes=codes,
        wanted=is_target[codes] & in_visit & ~is_repeat,
    )


def _time_ranks(batch: dict[str, jax.Array]) -> jax.Array:
    """Returns (B, L) ranks of recording times, which start at 1 for codes."""
    return batch["time_ranks"] if "time_ranks" in batch else batch["visit_ids"] + 1


def _last_before(patients: jax.Array, ranks: jax.Array, owners: jax.Array, until: jax.Array) -> jax.Array:
    """Returns (B, K) int32 indices of the last token of each owner whose rank is below `until`; 0 if there is none."""
    length = patients.shape[1]
    is_past = (patients[:, None, :] == owners[:, :, None]) & (ranks[:, None, :] < until[:, :, None])
    order = ranks * length + jnp.arange(length, dtype=ranks.dtype)[None, :]
    return jnp.argmax(jnp.where(is_past, order[:, None, :], -1), axis=2).astype(jnp.int32)


def _find_repeats(values: jax.Array) -> jax.Array:
    """Returns whether each entry of (B, L) repeats an earlier one of its row."""
    order = jnp.argsort(values, axis=1, stable=True)
    sorted_values = jnp.take_along_axis(values, order, axis=1)
    repeats = jnp.pad(sorted_values[:, 1:] == sorted_values[:, :-1], ((0, 0), (1, 0)))
    return jax.vmap(lambda place, flag: jnp.zeros_like(flag).at[place].set(flag))(order, repeats)


def next_visit_loss(
    queries: CodeQueries, boundaries: Boundaries, is_target: jax.Array, weights: jax.Array
) -> jax.Array:
    """Sums the loss of the codes of next visits, without a dense array of targets or of logits.

    Args:
      queries: of the (B, K) visits to predict.
      boundaries: from `find_boundaries`.
      is_target: (V,) bool.
      weights: (B, K), 0 for visits that do not count.

    Returns:
      The weighted sum of binary cross-entropies over target codes (nats).
    """
    flat = queries.queries.reshape(-1, queries.queries.shape[-1])
    if_absent = absence_loss(flat, queries.table, queries.bias, is_target, weights.reshape(-1))
    slots = jnp.minimum(boundaries.slots, weights.shape[1] - 1)
    own = take_places(queries.queries, slots)
    logits = (own * queries.table[boundaries.codes]).sum(axis=-1) + queries.bias[boundaries.codes]
    counted = jnp.where(boundaries.wanted, jnp.take_along_axis(weights, slots, axis=1), 0.0)
    return if_absent - (logits * counted).sum()


def cut_histories(key: jax.Array, batch: dict[str, jax.Array], boundaries: Boundaries):
    """Cuts each patient's history at the start of a visit sampled uniformly from all but the first in the row.

    Args:
      key: a PRNG key, used only for this batch.
      batch: the columns of packed rows.
      boundaries: of the whole rows.

    Returns:
      The batch with `patient_ids` 0 for tokens recorded at or after the start of the visit to predict, so that none
      of them is visible, and the boundaries with only the visits at the cuts.
    """
    patients, visits, ranks = batch["patient_ids"], batch["visit_ids"], _time_ranks(batch)
    rows, length = patients.shape
    last_visits = jax.vmap(lambda visit, patient: jnp.zeros(length + 1, jnp.int32).at[patient].max(visit))(
        visits, patients
    )
    cut_visits = 1 + jnp.floor(jax.random.uniform(key, last_visits.shape) * last_visits).astype(jnp.int32)
    token_cuts = jnp.take_along_axis(cut_visits, patients, axis=1)
    owners, start_ranks, is_cut = (
        jnp.take_along_axis(values, boundaries.starts, axis=1) for values in (patients, ranks, visits == token_cuts)
    )
    is_cut &= boundaries.weights > 0
    # Ranks are at most the row length, so a patient without a cut keeps all tokens.
    cut_ranks = jax.vmap(lambda owner, rank: jnp.full(length + 1, length + 1).at[owner].min(rank))(
        owners, jnp.where(is_cut, start_ranks, length + 1)
    )
    visible_ids = patients * (ranks < jnp.take_along_axis(cut_ranks, patients, axis=1))
    cut_boundaries = boundaries._replace(
        weights=boundaries.weights * is_cut, wanted=boundaries.wanted & (visits == token_cuts)
    )
    return {**batch, "patient_ids": visible_ids}, cut_boundaries


def make_objective(model, config: ObjectiveConfig, use_sep: bool, is_target) -> Objective:
    """Returns the next-visit objective, with the losses `next_visit/loss` and `next_visit/days_loss`.

    For visits without a target code, only the days are predicted. See `joint.make_objective`.
    """
    is_target = jnp.asarray(is_target)
    every_visit = config.history == "every_visit"

    def prepare(batch, key):
        boundaries = find_boundaries(batch, is_target, use_sep)
        gaps = None
        if config.known_time_share:
            key, known_key = jax.random.split(key)
            is_known = jax.random.bernoulli(known_key, config.known_time_share, boundaries.ends.shape)
            gaps = jnp.where(is_known, days_ahead(batch, boundaries), jnp.nan)
        return (*((batch, boundaries) if every_visit else cut_histories(key, batch, boundaries)), gaps)

    def known(boundaries):
        return boundaries.weights * (boundaries.num_targets > 0)

    def count(prepared):
        _, boundaries, _ = prepared
        return {"next_visit/loss": known(boundaries).sum(), "next_visit/days_loss": boundaries.weights.sum()}

    def measure(params, prepared, dropout_key):
        batch, boundaries, gaps = prepared
        arguments = (batch, boundaries.ends, every_visit, dropout_key, gaps)
        queries, days = score_next_visits(model, params, *arguments, method="query_next_visits")
        loss = next_visit_loss(queries, boundaries, is_target, known(boundaries))
        errors = jnp.square(days - jnp.log1p(boundaries.days))
        counts = count(prepared)
        return {
            "next_visit/loss": (loss, counts["next_visit/loss"]),
            "next_visit/days_loss": ((errors * boundaries.weights).sum(), counts["next_visit/days_loss"]),
        }

    return Objective(prepare, measure, count, {"next_visit/loss": 1.0, "next_visit/days_loss": config.time_gap_weight})


def days_ahead(batch: dict[str, jax.Array], boundaries: Boundaries) -> jax.Array:
    """Computes (B, K) float32 days from the last token before each visit to predict to the visit's start."""
    end_dates, start_dates = (
        jnp.take_along_axis(batch["dates"], indices, axis=1) for indices in (boundaries.ends, boundaries.starts)
    )
    return jnp.maximum(start_dates - end_dates, 0.0) * DAYS_PER_YEAR


def score_next_visits(
    model, params, batch, ends, causal=True, dropout_key=None, gaps=None, method: str = "predict_next_visits"
):
    """Computes logits (B, K, V) and log-days (B, K) of the visits after `ends` with a `BEHRTForPretraining`.

    A key enables dropout. `gaps` (B, K) are days to the start of the visits, NaN where the model must not know it.
    With `method="query_next_visits"`, returns the `CodeQueries` of the logits in their place.
    """
    arguments = {"visit_ends": ends, "causal": causal, "gaps": gaps, "method": method}
    return apply_model(model, params, batch, dropout_key, **arguments)
