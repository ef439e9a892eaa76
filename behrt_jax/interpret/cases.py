"""Attribution cases: held-out histories in rows, and the output to explain for each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from behrt_jax.data import batches, next_visit_targets
from behrt_jax.data import windows as data_windows
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.vocabulary import MASK
from behrt_jax.finetuning.finetuned import FinetunedModel
from behrt_jax.interpret import attribution
from behrt_jax.objectives import survival
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.training.pretraining import PretrainingTask


class AttributionCase(NamedTuple):
    """N histories and one output to explain for each.

    Attributes:
      kind: `next_visit`, `mlm` or `outcome`.
      columns: (N, L) each, from `batches.one_a_row`, with `target` or `covariates`.
      visits: (N, L) int, the visit of each token in the index of `patients`; -1 outside visits.
      starts: the first token of each visit of the index.
      patients: the patients whose histories are in the rows.
      owners: (N,) index in `patients` of each row.
      score: a function of the columns.
      places: a function from columns to the position of the state that a head reads; None if it reads all equally.
      arguments: further arguments of the encoder.
    """

    kind: str
    columns: dict[str, np.ndarray]
    visits: np.ndarray
    starts: np.ndarray
    patients: Patients
    owners: np.ndarray
    score: attribution.Score
    places: Callable[[dict], jax.Array] | None
    arguments: dict[str, Any]


def make_case(kind: str, patients: Patients, index, windows, score, extra: dict, until=None, **rest) -> AttributionCase:
    """Lays out windows of patients as a case, with the tokens before the (N,) times `until`; `extra` adds columns."""
    columns = batches.one_a_row(patients, index.row_length, index.use_sep, windows, with_times=True) | extra
    times = columns.pop("times")
    if until is not None:
        is_past = times < until[:, None]
        columns |= {name: columns[name] * is_past for name in ("patient_ids", "in_visit", "maskable")}
    visits = np.where(columns["in_visit"], windows.start[:, None] + columns["visit_ids"], -1)
    fields = {"places": None, "arguments": {}, **rest}
    return AttributionCase(kind, columns, visits, index.starts[0], patients, windows.patients, score, **fields)


def make_next_visit_case(
    task: PretrainingTask, params, patients, index, visits: np.ndarray, targets: np.ndarray
) -> AttributionCase:
    """Makes a case of the log odds of a code at each of (N,) visits of the index, from the history before the visit."""
    causal = task.recipe.objective.history != "random_cut"
    score = functools.partial(attribution.next_visit_odds, task.model, params, causal=causal)
    windows = data_windows.windows_until(index, visits, index.owners[visits])
    options = {"places": attribution.last_places, "arguments": {"causal": causal}}
    options |= {"until": patients.times[index.starts[0][visits]]}
    return make_case("next_visit", patients, index, windows, score, {"target": targets.astype(np.int32)}, **options)


def last_targets(patients: Patients, index, is_target: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns each patient's last visit, after the first, with a target code, and one of these codes, by a hash."""
    examples = next_visit_targets.find_next_visits(patients, index, is_target)
    last = np.flatnonzero(np.diff(examples.patients, append=-1) != 0)
    rows, places = examples.targets[last].nonzero()
    hashes = hash_integers(seed, patients.subject_ids[examples.patients[last[rows]]], examples.codes[places])
    order = np.lexsort((hashes, rows))
    firsts = order[np.searchsorted(rows[order], np.arange(len(last)))]
    return examples.visits[last], examples.codes[places[firsts]]


def make_masked_code_case(model, params, patients, index, may_mask: np.ndarray, seed: int = 0) -> AttributionCase:
    """Masks a code of each patient's newest visits, by a hash among `may_mask`, (V,) bool, to explain its log odds."""
    owners = np.flatnonzero(np.diff(index.first_visit) > 0)
    windows = data_windows.windows_until(index, index.first_visit[owners + 1], owners)
    score = functools.partial(attribution.masked_odds, model, params)
    case = make_case("mlm", patients, index, windows, score, {}, places=attribution.masked_places)
    columns = case.columns
    hashes = hash_integers(seed, patients.subject_ids[owners][:, None], columns["positions"])
    is_candidate = columns["maskable"] & may_mask[columns["codes"]]
    place = np.where(is_candidate, hashes >> np.uint64(1), np.uint64(2**63)).argmin(axis=1)[:, None]
    columns["target"] = np.take_along_axis(columns["codes"], place, axis=1)[:, 0]
    np.put_along_axis(columns["codes"], place, MASK, axis=1)
    if "values" in columns:
        np.put_along_axis(columns["values"], place, np.nan, axis=1)
    np.put_along_axis(columns["maskable"], place, False, axis=1)
    return take(case, np.flatnonzero(is_candidate.any(axis=1)))


def take(case: AttributionCase, rows: np.ndarray) -> AttributionCase:
    """Returns some rows of a case, in any order and with repeats."""
    columns = {name: values[rows] for name, values in case.columns.items()}
    return case._replace(columns=columns, visits=case.visits[rows], owners=case.owners[rows])


def make_outcome_case(own: FinetunedModel, found, number: int = 0) -> AttributionCase:
    """Makes a case of an outcome of labelled histories: a logit, or the log cumulative hazard by the last horizon."""
    recipe, outcome = own.recipe, own.recipe.outcome
    index = data_windows.index_visits(found.model_inputs, recipe.data.row_length, recipe.data.use_sep)

    def score(columns):
        logits = attribution.outcome_logits(own.model, own.params, columns)
        if isinstance(outcome, SurvivalConfig):
            return survival.log_hazard_by(logits, outcome, recipe.evaluation.horizons[-1])
        return logits[:, number]

    extra = {"covariates": found.covariates} if found.covariates.shape[1] else {}
    places = (lambda columns: 0 * attribution.last_places(columns)) if recipe.model.pooling == "cls" else None
    windows = data_windows.newest_windows(index)
    return make_case("outcome", found.model_inputs, index, windows, score, extra, places=places)


def distances(case: AttributionCase) -> np.ndarray:
    """Returns the distance of each token from the explained position, first in visits, then in tokens: (N, L)."""
    visits, positions = case.columns["visit_ids"], case.columns["positions"]
    find_places = case.places or attribution.last_places
    places = np.asarray(find_places(case.columns))[:, None]
    visit_distance = np.abs(visits - np.take_along_axis(visits, places, axis=1))
    return visit_distance * visits.shape[1] + np.abs(positions - places)
