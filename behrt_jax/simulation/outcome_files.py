"""Label files of survival outcomes with a known hazard, one prediction time per patient, and a file of the truth."""

import datetime
import json
import logging
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import dataset, events, histories
from behrt_jax.data.config import DataConfig
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.prepare import prepare
from behrt_jax.labels import tasks
from behrt_jax.labels.label_files import KEYS, TRUTH_COLUMNS
from behrt_jax.labels.labels import MICROSECONDS_A_DAY, Labels
from behrt_jax.labels.tasks import make_labels
from behrt_jax.labels.time_to_event import parse_time_to_event
from behrt_jax.metrics import survival
from behrt_jax.simulation.hazards import Hazard, Rule, TrueOutcomes

logger = logging.getLogger(__name__)
TRUTH_SUFFIX = ".truth.json"
HAZARD_FLAGS = ("num_rules", "group_size", "spread", "scale", "shape", "censored")


def choose_times(data: str, min_visits: int, seed: int) -> Labels:
    """Chooses a prediction time for each patient: the start of a random visit with enough earlier visits."""
    index, follow_up = {"visits": True}, {"until": datetime.datetime.max}  # simulated outcomes need no follow-up
    section = {"index": index, "require": {"min_visits": min_visits}, "events": {"death": events.DEATH}}
    task = parse_time_to_event({"time_to_event": {**section, "follow_up": follow_up}}, "prediction times")
    candidates = make_labels(task, events.find_shards(data))
    logger.info(f"{candidates.counts['patients']:,} patients, {candidates.counts['index dates']:,} visits")
    for reason, number in candidates.dropped.items():
        if number:
            logger.info(f"  dropped: {number:,} {reason}")
    rows = candidates.labels.select(KEYS).with_columns(visit=pl.int_range(pl.len()).over("subject_id"))
    hashes = hash_integers(seed, rows["subject_id"].to_numpy(), rows["visit"].to_numpy())
    rows = rows.with_columns(drawn=hashes).sort("drawn").unique("subject_id", keep="first").sort(KEYS)
    if not rows.height:
        raise ValueError(f"{data}: no patient has {min_visits} visits and a later one; lower --min_visits")
    times = rows["prediction_time"].to_numpy().astype("datetime64[us]")
    values, days, no_events = np.zeros((len(times), 0)), np.full(len(times), np.nan), np.zeros(len(times), np.int32)
    return Labels("times", (), rows["subject_id"].to_numpy(), times, values, days, no_events)


def read_histories(config: DataConfig, times: Labels, include_at: bool) -> tuple[Labels, Patients, tuple[str, ...]]:
    """Returns the prediction times with a history, the whole histories in the same order, and the tokens by id."""
    prepared = prepare(config, None)
    tokens, patients = prepared.vocabulary.tokens, dataset.read(prepared.folder, "all")
    times = times.take(np.flatnonzero(np.isin(times.subject_ids, patients.subject_ids)))
    arguments = (times.subject_ids, times.prediction_times, include_at)
    truncated_histories, rows, _ = histories.histories_at(patients, *arguments)
    logger.info(f"{len(rows):,} of {len(times):,} prediction times have a history before them")
    is_long = np.diff(truncated_histories.offsets) > config.row_length
    logger.info(f"{is_long.mean():.1%} of histories have more codes than a row of {config.row_length} tokens holds")
    return times.take(rows), truncated_histories, tokens


def to_table(times: Labels, truth: TrueOutcomes) -> pl.DataFrame:
    """Formats the outcomes as a table of labels, with three columns of truth."""
    elapsed = np.maximum(np.rint(truth.days * MICROSECONDS_A_DAY), 1).astype("timedelta64[us]")
    columns = {"subject_id": times.subject_ids, "prediction_time": times.prediction_times}
    columns |= {"event_time": times.prediction_times + elapsed, "event": truth.events}
    truth_values = (truth.log_hazard, *(np.full(len(elapsed), value) for value in (truth.scale, truth.shape)))
    return pl.DataFrame({**columns, **dict(zip(TRUTH_COLUMNS, truth_values, strict=True))})


def write_truth(file: Path, hazard: Hazard) -> None:
    """Writes the rules of the log hazard, from which `experiments.explain` computes the effect of each code."""
    content = {"rules": [rule._asdict() for rule in hazard.rules]}
    content |= {name: getattr(hazard, name).tolist() for name in ("coefficients", "centres", "scales")}
    file.write_text(json.dumps(content, indent=1))


def read_truth(file: Path) -> Hazard:
    """Reads a hazard that `write_truth` wrote.

    Raises:
      ValueError: the file has other content, such as the features of earlier versions.
    """
    try:
        truth = json.loads(file.read_text())
        rules = tuple(
            Rule(**{**rule, "first": tuple(rule["first"]), "second": tuple(rule["second"])}) for rule in truth["rules"]
        )
        return Hazard(rules, *(np.asarray(truth[name]) for name in ("coefficients", "centres", "scales")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        cure = "draw them again with experiments.simulate_outcomes"
        raise ValueError(f"{file}: not the rules of simulated outcomes (found {reason}); {cure}") from error


def summarize(table: pl.DataFrame, truth: TrueOutcomes) -> list[str]:
    """Returns lines with counts, the rules of the hazard, and Harrell's C of the true log hazard."""
    hazard = truth.hazard
    lines = [f"{table.height:,} rows of {table['subject_id'].n_unique():,} patients", *tasks.count_outcomes(table)]
    lines += ["log hazard: the sum of these rules, each in standard deviations (the mean of its value in brackets):"]
    lines += [
        f"  {hazard.coefficients[index]:+.3f} [{hazard.centres[index]:.2f}] {hazard.rules[index]}"
        for index in np.argsort(-np.abs(hazard.coefficients))
    ]
    concordance = survival.concordance(truth.events, truth.days, truth.log_hazard)
    return [*lines, f"Harrell's C of the oracle, who knows the log hazard: {concordance:.4f}"]
