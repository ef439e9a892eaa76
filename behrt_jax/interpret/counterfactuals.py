"""Counterfactual histories: removes or adds codes and visits.

Histories have a row each: (B, L) columns, as laid out by `batches.one_a_row`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.data.vocabulary import MASK, NUM_SPECIAL, SEP
from behrt_jax.data.windows import COLUMNS

Columns = dict[str, Any]
OF_TOKENS = (*COLUMNS, "patient_ids", "in_visit", "values")


def remove_tokens(columns: Columns, removed: jax.Array) -> Columns:
    """Lays histories out as if the tokens `removed`, (B, L) bool, had never been recorded; can be jitted.

    Later tokens move up, positions and visits are renumbered, and days are counted from the visit that now precedes. A
    visit that loses its last code is removed with its `[SEP]`. `[CLS]` and static tokens get the age and date of the
    first remaining token, `[SEP]` those of the last token of its visit. Tokens older than the row do not move in.
    Arrays of other shapes than (B, L), such as `target` and `covariates`, are kept.
    """
    inside, visits = columns["in_visit"], columns["visit_ids"]
    rows = jnp.arange(removed.shape[0])[:, None]

    def in_visits_of(flags):
        has_flag = jnp.zeros(removed.shape, bool).at[rows, visits].max(flags & inside)
        return jnp.take_along_axis(has_flag, visits, axis=1) & inside

    is_code = columns["codes"] >= MASK
    emptied = in_visits_of(is_code) & ~in_visits_of(is_code & ~removed)
    kept = (columns["patient_ids"] != 0) & ~removed & ~emptied
    order = jnp.argsort(~kept, axis=1)  # stable, so that kept tokens stay in order
    kept = jnp.take_along_axis(kept, order, axis=1)
    days, first_days = columns["time_deltas"], _first(columns["time_deltas"], inside)
    emptied_starts = _begins(inside, visits) & ~in_visits_of(
        jnp.take_along_axis(kept, jnp.argsort(order, axis=1), axis=1)
    )
    lost_days = jnp.cumsum(jnp.where(emptied_starts, days, 0.0), axis=1)

    def move(values, padding=0.0):
        return jnp.where(kept, jnp.take_along_axis(values, order, axis=1), padding).astype(values.dtype)

    paddings = {**dict.fromkeys(OF_TOKENS, 0.0), "values": jnp.nan}
    result = {name: move(each, paddings[name]) if name in OF_TOKENS else each for name, each in columns.items()}
    inside, lost_days = result["in_visit"], move(lost_days)
    begins = _begins(inside, result["visit_ids"])
    result["visit_ids"] = jnp.where(kept, jnp.maximum(jnp.cumsum(begins, axis=1) - 1, 0), 0).astype(visits.dtype)
    # Days lost before the previous visit.
    lost_before = jnp.where(begins, jnp.pad(lost_days[:, :-1], ((0, 0), (1, 0))), 0.0)
    days = result["time_deltas"] + jnp.where(inside, lost_days - jax.lax.cummax(lost_before, axis=1), 0.0)
    begins_life = (first_days == 0)[:, None] & (result["visit_ids"] == 0)
    result["time_deltas"] = jnp.where(begins_life, 0.0, days)
    closes = inside & ~begins & (result["codes"] == SEP)
    ranks = jnp.where(closes, jnp.roll(result["time_ranks"], 1, axis=1), result["time_ranks"])
    result["positions"], result["time_ranks"] = _in_time(ranks, kept)
    for name in ("ages", "dates"):
        times = jnp.where(closes, jnp.roll(result[name], 1, axis=1), result[name])
        result[name] = jnp.where(kept & ~inside, _first(times, inside)[:, None], times)
    return result


def _in_time(ranks, used) -> tuple[jax.Array, jax.Array]:
    """Returns the position of each token in time order, and its time rank without gaps, from (B, L) ranks."""
    order = jnp.argsort(jnp.where(used, ranks, jnp.iinfo(jnp.int32).max), axis=1)
    ascending = jnp.take_along_axis(ranks, order, axis=1)
    dense = jnp.pad(jnp.cumsum(jnp.diff(ascending, axis=1) != 0, axis=1), ((0, 0), (1, 0)))
    back = jnp.argsort(order, axis=1)
    places = jnp.where(used, back, 0).astype(jnp.int32)
    return places, jnp.where(used, jnp.take_along_axis(dense, back, axis=1), 0).astype(jnp.int32)


def _begins(inside: jax.Array, visits: jax.Array) -> jax.Array:
    """Returns which tokens start a visit."""
    before = jnp.pad(jnp.where(inside, visits, -1)[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    return inside & (visits != before)


def _first(values: jax.Array, inside: jax.Array) -> jax.Array:
    return jnp.take_along_axis(values, jnp.argmax(inside, axis=1)[:, None], axis=1)[:, 0]


def remove_code(columns: Columns, code: int) -> Columns:
    """Removes all occurrences of a code from histories."""
    return remove_tokens(columns, jnp.asarray(columns["codes"]) == code)


def remove_visit(columns: Columns, visit: int) -> Columns:
    """Removes a visit, numbered from 0 in the row, from histories."""
    return remove_tokens(columns, (jnp.asarray(columns["visit_ids"]) == visit) & columns["in_visit"])


def add_codes(columns: Columns, codes: list[int], visit: int) -> Columns:
    """Adds codes (ids) at the end of a visit, numbered from 0 in the row, of one history of (1, L) columns.

    Raises:
      ValueError: the row has no such visit, or not enough room.
    """
    columns = {name: np.asarray(values) for name, values in columns.items()}
    in_visit = (columns["visit_ids"] == visit) & columns["in_visit"]
    if not in_visit.any():
        last = columns["visit_ids"].max()
        raise ValueError(f"visit: found {visit}; expected a visit of the row, 0 to {last}")
    last = np.flatnonzero(in_visit[0] & (columns["codes"][0] != SEP))
    place = last[-1] + 1 if len(last) else np.flatnonzero(in_visit[0])[0]
    return _insert(columns, place, {"codes": codes}, like=max(place - 1, np.flatnonzero(in_visit[0])[0]))


def add_visit(columns: Columns, codes: list[int], days: float, use_sep: bool = True) -> Columns:
    """Adds a visit to one history, some days after its last visit and before the prediction token.

    Args:
      columns: (1, L) each.
      codes: ids in the vocabulary, the codes of the new visit.
      days: from the start of the last visit with a code to the start of the new one.
      use_sep: the run's `data.use_sep`, whether `[SEP]` ends each visit.

    Raises:
      ValueError: the row has no visit or not enough room, or the new visit would be after the prediction time.
    """
    columns = {name: np.asarray(values) for name, values in columns.items()}
    code_places = np.flatnonzero((columns["codes"][0] >= MASK) & columns["in_visit"][0])
    if not len(code_places):
        raise ValueError("columns: found a row without a visit; expected a history with one")
    last = code_places[-1]
    in_last_visit = columns["in_visit"][0] & (columns["visit_ids"][0] == columns["visit_ids"][0, last])
    end = np.flatnonzero(in_last_visit)[-1] + 1
    start = np.flatnonzero(in_last_visit)[0]
    has_prediction_token = columns["in_visit"][0, end] if end < columns["codes"].shape[1] else False
    room = columns["time_deltas"][0, end] if has_prediction_token else np.inf
    if not 0 < days <= room:
        raise ValueError(f"days: found {days:g}; expected more than 0 and at most {room:g}, the prediction time")
    later = {name: columns[name][0, start] + days / 365.25 for name in ("ages", "dates")}
    new = {"codes": [*codes, SEP] if use_sep else codes, "time_deltas": days, **later}
    new["visit_ids"] = columns["visit_ids"][0, last] + 1
    is_earlier = (columns["patient_ids"][0] != 0) & (columns["dates"][0] <= later["dates"])
    columns["time_ranks"] = 2 * columns["time_ranks"]  # leaves room between ranks for that of the new visit
    new["time_ranks"] = columns["time_ranks"][0, is_earlier].max() + 1
    after = (np.arange(columns["codes"].shape[1]) >= end) & columns["in_visit"][0]
    columns["visit_ids"] = columns["visit_ids"] + after
    columns["time_deltas"] = np.where(after, columns["time_deltas"] - np.float32(days), columns["time_deltas"])
    return _insert(columns, end, new, like=start)


def _insert(columns: Columns, place: int, new: dict, like: int) -> Columns:
    """Inserts tokens before a position; columns that are not in `new` are copied from the token `like`."""
    size, length = len(new["codes"]), columns["codes"].shape[1]
    used = int((columns["patient_ids"] != 0).sum())
    if len(columns["codes"]) != 1 or used + size > length:
        layout = f"{len(columns['codes'])} rows, {used} of {length} places taken"
        raise ValueError(f"columns: found {layout}; expected one row with room for {size} tokens; lay it out longer")
    new = {"maskable": np.asarray(new["codes"]) >= NUM_SPECIAL, "values": np.nan, **new}
    layout = {}
    for name, values in columns.items():
        if name not in OF_TOKENS:
            layout[name] = values
            continue
        added = np.broadcast_to(new.get(name, values[0, like]), (size,)).astype(values.dtype)
        layout[name] = np.insert(values[0], place, added)[None, :length]
    places, ranks = _in_time(layout["time_ranks"], layout["patient_ids"] != 0)
    return layout | {"positions": np.asarray(places), "time_ranks": np.asarray(ranks)}
