"""True effects of codes in simulated histories, and the agreement of attributions with them."""

from pathlib import Path

import numpy as np
import tqdm
from scipy.special import logit
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from behrt_jax.data.dataset import Patients, gather, take
from behrt_jax.data.windows import VisitIndex
from behrt_jax.interpret.attribution import is_explained, masked_places
from behrt_jax.interpret.cases import AttributionCase
from behrt_jax.metrics import bootstrap
from behrt_jax.simulation import oracle
from behrt_jax.simulation.outcome_files import read_truth
from behrt_jax.simulation.world import Histories, World

TOP = 5  # codes of largest effect in a history, which attributions should find
NOTHING = 1e-9  # effects up to this size, in nats, count as none
CLIP = 1e-12


def oracle_effects(
    case: AttributionCase, world: World, seen: Histories, index: VisitIndex, tokens: tuple[str, ...]
) -> np.ndarray:
    """Computes the drop of the oracle's log odds of each target of a case without a code: (N, L); NaN elsewhere.

    The code of the encounter is left out: every visit has it, so no history of the world is without it. `seen` are the
    observed histories of the case's patients, visit by visit as in `index`; `tokens` are the vocabulary's, by id.
    """
    columns = {code: place for place, code in enumerate(world.codes)}
    column_of = np.array([columns.get(token, -1) for token in tokens])
    is_target = world.emission.min(axis=0) < 1
    effects, mask_places = np.full(case.visits.shape, np.nan), np.asarray(masked_places(case.columns))
    for row in tqdm.trange(len(effects), desc="asking the oracle", unit="history"):
        owner, world_codes = case.owners[row], column_of[case.columns["codes"][row]]
        first, last = index.first_visit[owner], index.first_visit[owner + 1]
        target = column_of[case.columns["target"][row]]
        if case.kind == "next_visit":
            last = case.visits[row].max() + 1
        places = np.flatnonzero((case.visits[row] >= 0) & is_target[world_codes] & (world_codes >= 0))
        count, length = len(places) + 1, last - first
        codes = np.repeat(seen.codes[first:last][None], count, axis=0)
        codes[np.arange(1, count), case.visits[row, places] - first, world_codes[places]] = False
        months, sexes = np.tile(seen.month[first:last], count), np.repeat(seen.sex[owner], count)
        repeated = Histories(sexes, np.repeat(np.arange(count), length), months, codes.reshape(count * length, -1))
        if case.kind == "next_visit":
            probabilities = oracle.next_visit_probabilities(world, repeated, is_target)
            probabilities = probabilities.reshape(count, length, -1)[:, -1, target]
        else:
            hidden = np.zeros(codes.shape, bool)
            masked_visit = case.visits[row, mask_places[row]] - first
            hidden[:, masked_visit, target] = True
            probabilities = oracle.masked_probabilities(world, repeated, hidden.reshape(repeated.codes.shape))
            probabilities = probabilities.reshape(count, length, -1)[:, masked_visit, target]
        log_odds = logit(np.clip(probabilities, CLIP, 1 - CLIP))
        effects[row, places] = log_odds[0] - log_odds[1:]
    return effects


def certain_codes(world: World) -> tuple[str, ...]:
    """Returns the codes that every visit has."""
    return tuple(code for code, least in zip(world.codes, world.emission.min(axis=0), strict=True) if least == 1)


def hazard_effects(
    case: AttributionCase, rows: Patients, times: np.ndarray, file: Path, tokens: tuple[str, ...]
) -> np.ndarray:
    """Computes the drop of the true log hazard without a code: (N, L); NaN outside visits.

    Args:
      case: a case of outcomes drawn by `experiments.simulate_outcomes`.
      rows: the N whole histories, without prediction tokens, which the hazard depends on.
      times: (N,) prediction times.
      file: the truth file next to the labels.
      tokens: of the vocabulary, by id.
    """
    hazard = read_truth(file)
    effects = np.full(case.visits.shape, np.nan)
    for row in tqdm.trange(len(effects), desc="asking the truth", unit="history"):
        history = take(rows, np.arange(len(rows)) == row)
        visits = np.where(case.visits[row] >= 0, case.patients.visits[case.starts[case.visits[row]]], -1)
        places = np.flatnonzero(np.asarray(is_explained(case.columns))[row] & (visits >= 0))
        matches = (history.visits[None] == visits[places, None]) & (
            history.codes[None] == case.columns["codes"][row, places, None]
        )
        places, matches = places[matches.sum(axis=1) == 1], matches[matches.sum(axis=1) == 1]
        kept = np.concatenate([np.ones((1, len(history.codes)), bool), ~matches])
        log_hazards = hazard.log_hazard(repeat(history, kept), np.repeat(times[row], len(kept)), tokens)
        effects[row, places] = log_hazards[0] - log_hazards[1:]
    return effects


def repeat(one: Patients, kept: np.ndarray) -> Patients:
    """Repeats a history K times, each with the tokens marked in a row of `kept`, (K, tokens) bool."""
    return gather(one, np.zeros(len(kept), int), kept.sum(axis=1), np.nonzero(kept)[1])


def agreement(truth: np.ndarray, scores: np.ndarray, owners: np.ndarray) -> bootstrap.PerTargetScores:
    """Measures the agreement of (N, L) scores with the true effects (NaN: nothing to compare) in each history.

    Returns:
      For each history, with its patient of (N,) `owners`: `auroc`, of absolute scores for the `TOP` codes with the
      largest absolute effects; `spearman`, of absolute values; and `pearson`, of signed values. Omits histories with
      fewer than 2 x `TOP` codes, or with fewer than `TOP` codes that have an effect.
    """
    measures, patients = {"auroc": [], "spearman": [], "pearson": []}, []
    for row, effects in enumerate(truth):
        known = np.isfinite(effects)
        true_effects, attributions = effects[known], scores[row, known]
        size = np.abs(true_effects)
        if known.sum() < 2 * TOP or (size > NOTHING).sum() < TOP:
            continue
        patients.append(owners[row])
        top = np.zeros(len(size), bool)
        top[np.argsort(-size, kind="stable")[:TOP]] = True
        measures["auroc"].append(roc_auc_score(top, np.abs(attributions)))
        measures["spearman"].append(_correlation(rankdata(size), rankdata(np.abs(attributions))))
        measures["pearson"].append(_correlation(true_effects, attributions))
    return bootstrap.PerTargetScores(
        np.array(patients, int), {name: np.array(values) for name, values in measures.items()}
    )


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1]) if np.ptp(one) > 0 and np.ptp(other) > 0 else 0.0
