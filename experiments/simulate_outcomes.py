"""Draws survival outcomes of known truth for the patients of any data set, one prediction time each; docs/labels.md.

python -m experiments.simulate_outcomes --data=DIR --output=FILE.parquet [--seed=0] [--config.data.KEY=VALUE ...]
"""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse
from absl import flags
from ml_collections import ConfigDict, config_flags

from behrt_jax import outcome_features, survival_metrics
from behrt_jax.data import dataset, events
from behrt_jax.data.config import DataConfig
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.label_tables import KEYS, TRUTH_COLUMNS
from behrt_jax.data.labels import MICROSECONDS_A_DAY, Labels
from behrt_jax.data.outcomes import TrueOutcomes, simulate_outcomes
from behrt_jax.data.prepare import prepare
from behrt_jax.data.tasks import make_labels
from behrt_jax.data.tasks_time_to_event import parse_time_to_event
from configs import survival
from experiments import command, labels
from experiments.labelled import find_histories

TRUTH = ".truth.json"
DRAWN = ("num_columns", "num_interactions", "spread", "scale", "shape", "censored")


def choose_times(data: str, min_visits: int, seed: int, say: Callable[[str], None]) -> Labels:
    """Chooses a prediction time of each patient: the start of a visit, each as likely, with enough visits before."""
    index, ends = {"visits": True}, {"until": datetime.datetime.max}  # outcomes need no follow-up
    section = {"index": index, "require": {"min_visits": min_visits}, "events": {"death": events.DEATH}}
    task = parse_time_to_event({"time_to_event": {**section, "follow_up": ends}}, "prediction times")
    made = make_labels(task, events.find_shards(data))
    say(f"{made.counts['patients']:,} patients, {made.counts['index dates']:,} visits")
    for reason, number in made.dropped.items():
        if number:
            say(f"  dropped: {number:,} {reason}")
    rows = made.labels.select(KEYS).with_columns(visit=pl.int_range(pl.len()).over("subject_id"))
    drawn = hash_integers(seed, rows["subject_id"].to_numpy(), rows["visit"].to_numpy())
    rows = rows.with_columns(drawn=drawn).sort("drawn").unique("subject_id", keep="first").sort(KEYS)
    if not rows.height:
        raise ValueError(f"{data}: no patient has {min_visits} visits and a later one; lower --min_visits")
    times = rows["prediction_time"].to_numpy().astype("datetime64[us]")
    values, days, none = np.zeros((len(times), 0)), np.full(len(times), np.nan), np.zeros(len(times), np.int32)
    return Labels("times", (), rows["subject_id"].to_numpy(), times, values, days, none)


def feature_names(tokens: tuple[str, ...]) -> list[str]:
    """Names the columns of `outcome_features.features`, age and sex first."""
    kinds = ["log count", *(f"log count, half-life {days:g} days" for days in outcome_features.HALF_LIVES)]
    kinds += [f"in the last {outcome_features.RECENT:g} days", "static"]
    ages = [f"age bin {number}" for number in range(len(outcome_features.AGE_BINS) + 1)]
    basic = ["age", *(token for token in tokens if token.startswith("GENDER//"))]
    return [*basic, *(f"{token} ({kind})" for kind in kinds for token in tokens), *ages, "log visits", "log days ago"]


def find_features(
    config: ConfigDict, times: Labels, say: Callable[[str], None]
) -> tuple[Labels, scipy.sparse.csr_array, list[str]]:
    """Returns the prediction times that have a history, the features of what a row holds of it, and their names."""
    config.history.mark = False
    prepared = prepare(DataConfig(**config.data), None, progress=say)
    tokens, found = prepared.vocabulary.tokens, []
    for split in events.SPLITS:
        part = find_histories(config, dataset.read(prepared.folder, split), times, tokens, split, say)
        known = outcome_features.features(part.rows, part.labels.prediction_times, tokens)
        found.append((part.labels.subject_ids, scipy.sparse.hstack([known.basic, known.codes])))
    ids = np.concatenate([subject_ids for subject_ids, _ in found])
    table = scipy.sparse.csr_array(scipy.sparse.vstack([part for _, part in found]))
    order = np.argsort(ids)
    return times.take(np.isin(times.subject_ids, ids)), table[order], feature_names(tokens)


def to_table(times: Labels, truth: TrueOutcomes) -> pl.DataFrame:
    """Lays the outcomes out as labels, with three columns of truth."""
    elapsed = np.maximum(np.rint(truth.days * MICROSECONDS_A_DAY), 1).astype("timedelta64[us]")
    columns = {"subject_id": times.subject_ids, "prediction_time": times.prediction_times}
    columns |= {"event_time": times.prediction_times + elapsed, "event": truth.events}
    known = (truth.log_hazard, *(np.full(len(elapsed), value) for value in (truth.scale, truth.shape)))
    return pl.DataFrame({**columns, **dict(zip(TRUTH_COLUMNS, known, strict=True))})


def write_truth(file: Path, truth: TrueOutcomes, names: list[str]) -> None:
    """Writes how the log hazard is made of features, from which `experiments.explain` has the effect of each code."""
    known = {"features": [names[column] for column in truth.columns], "pairs": truth.pairs.tolist()}
    known |= {name: getattr(truth, name).tolist() for name in ("coefficients", "standards", "centres")}
    file.write_text(json.dumps(known, indent=1))


def summary(table: pl.DataFrame, truth: TrueOutcomes, names: list[str]) -> list[str]:
    """Returns lines of counts, of what matters, and of what knowing the truth reaches."""
    mattering = [names[column] for column in truth.columns]
    mattering += [f"{mattering[one]} x {mattering[other]}" for one, other in truth.pairs]
    strongest = np.argsort(-np.abs(truth.coefficients))
    lines = [f"{table.height:,} rows of {table['subject_id'].n_unique():,} patients", *labels.outcomes(table)]
    lines += ["log hazard: the sum of these features, in standard deviations, and products of two:"]
    lines += [f"  {truth.coefficients[place]:+.3f} {mattering[place]}" for place in strongest]
    reached = survival_metrics.concordance(truth.events, truth.days, truth.log_hazard)
    return [*lines, f"Harrell's C of the oracle, who knows the log hazard: {reached:.4f}"]


def main() -> None:
    """Runs the command."""
    config, output, drawn = FLAGS.config, Path(FLAGS.output), {name: getattr(FLAGS, name) for name in DRAWN}
    if output.suffix != ".parquet" or output.is_dir():
        raise ValueError(f"--output={output}: expected a file that ends in .parquet")
    config.data.path = FLAGS.data
    times, features, names = find_features(config, choose_times(FLAGS.data, FLAGS.min_visits, FLAGS.seed, print), print)
    truth = simulate_outcomes(features, FLAGS.seed, **drawn)
    table = to_table(times, truth)
    print("\n".join(summary(table, truth, names)))
    labels.write(table, output)
    write_truth(output.with_suffix(TRUTH), truth, names)
    print(f"wrote {output} and {output.with_suffix(TRUTH)}")
    print(f"next: python -m experiments.finetune --config=configs/survival.py --config.labels={output}", end=" ")
    print(f"--config.data.path={FLAGS.data} and the other --config.data flags of this command")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", survival.__file__, "Its section data says what a row holds.")
    flags.DEFINE_string("data", None, "A MEDS data set.", required=True)
    flags.DEFINE_string("output", None, "A .parquet file to write.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides times, what matters and the outcomes.", lower_bound=0)
    flags.DEFINE_integer("min_visits", 3, "Visits before the prediction time.", lower_bound=1)
    flags.DEFINE_integer("num_columns", 10, "How many features matter.")
    flags.DEFINE_integer("num_interactions", 3, "How many pairs of them do.")
    flags.DEFINE_float("spread", 1.0, "Standard deviation of the log hazard.")
    flags.DEFINE_float("scale", 1825.0, "Days at which the baseline's cumulative hazard is 1.")
    flags.DEFINE_float("shape", 1.0, "Of the Weibull baseline; 1: a constant hazard.")
    flags.DEFINE_float("censored", 0.3, "Expected share of rows that are censored.")
    command.run(main)
