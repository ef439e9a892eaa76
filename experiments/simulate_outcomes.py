"""Draws survival outcomes of known hazard for the patients of any data set, one prediction time each; docs/labels.md.

python -m experiments.simulate_outcomes --data=DIR --output=FILE.parquet [--seed=0] [--config.data.KEY=VALUE ...]

The hazard depends on the order and timing of codes and on ages, which counts do not hold: docs/simulator.md.
"""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from absl import flags
from ml_collections import ConfigDict, config_flags

from behrt_jax import survival_metrics
from behrt_jax.data import dataset, events
from behrt_jax.data.config import DataConfig
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.label_tables import KEYS, TRUTH_COLUMNS
from behrt_jax.data.labels import MICROSECONDS_A_DAY, Labels
from behrt_jax.data.outcomes import Hazard, Rule, TrueOutcomes, simulate_outcomes
from behrt_jax.data.prepare import prepare
from behrt_jax.data.tasks import make_labels
from behrt_jax.data.tasks_time_to_event import parse_time_to_event
from configs import survival
from experiments import command, labels
from experiments.labelled import find_histories

TRUTH = ".truth.json"
DRAWN = ("num_rules", "group_size", "spread", "scale", "shape", "censored")


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


def read_histories(
    config: ConfigDict, times: Labels, say: Callable[[str], None]
) -> tuple[Labels, Patients, tuple[str, ...]]:
    """Returns the prediction times that have a history, the whole histories in the same order, and the tokens by id."""
    prepared = prepare(DataConfig(**config.data), None, progress=say)
    tokens, patients = prepared.vocabulary.tokens, dataset.read(prepared.folder, "all")
    found = find_histories(config, patients, times, tokens, "all", say)
    too_long = np.diff(found.histories.offsets) > config.data.row_length
    say(f"{too_long.mean():.1%} of histories have more codes than a row of {config.data.row_length} tokens holds")
    return found.labels, found.histories, tokens


def to_table(times: Labels, truth: TrueOutcomes) -> pl.DataFrame:
    """Lays the outcomes out as labels, with three columns of truth."""
    elapsed = np.maximum(np.rint(truth.days * MICROSECONDS_A_DAY), 1).astype("timedelta64[us]")
    columns = {"subject_id": times.subject_ids, "prediction_time": times.prediction_times}
    columns |= {"event_time": times.prediction_times + elapsed, "event": truth.events}
    known = (truth.log_hazard, *(np.full(len(elapsed), value) for value in (truth.scale, truth.shape)))
    return pl.DataFrame({**columns, **dict(zip(TRUTH_COLUMNS, known, strict=True))})


def write_truth(file: Path, hazard: Hazard) -> None:
    """Writes what the log hazard is made of, from which `experiments.explain` has the effect of each code."""
    known = {"rules": [rule._asdict() for rule in hazard.rules]}
    known |= {name: getattr(hazard, name).tolist() for name in ("coefficients", "centres", "scales")}
    file.write_text(json.dumps(known, indent=1))


def read_truth(file: Path) -> Hazard:
    """Reads what `write_truth` wrote.

    Raises:
      ValueError: the file holds something else, such as the features of earlier versions.
    """
    try:
        known = json.loads(file.read_text())
        rules = tuple(
            Rule(**{**rule, "first": tuple(rule["first"]), "second": tuple(rule["second"])}) for rule in known["rules"]
        )
        return Hazard(rules, *(np.asarray(known[name]) for name in ("coefficients", "centres", "scales")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {error}"
        cure = "draw them again with experiments.simulate_outcomes"
        raise ValueError(f"{file}: not the rules of simulated outcomes (found {found}); {cure}") from error


def summary(table: pl.DataFrame, truth: TrueOutcomes) -> list[str]:
    """Returns lines of counts, of what matters, and of what knowing the truth reaches."""
    hazard = truth.hazard
    lines = [f"{table.height:,} rows of {table['subject_id'].n_unique():,} patients", *labels.outcomes(table)]
    lines += ["log hazard: the sum of these rules, each in standard deviations (the mean of its value in brackets):"]
    lines += [
        f"  {hazard.coefficients[place]:+.3f} [{hazard.centres[place]:.2f}] {hazard.rules[place]}"
        for place in np.argsort(-np.abs(hazard.coefficients))
    ]
    reached = survival_metrics.concordance(truth.events, truth.days, truth.log_hazard)
    return [*lines, f"Harrell's C of the oracle, who knows the log hazard: {reached:.4f}"]


def main() -> None:
    """Runs the command."""
    config, output, drawn = FLAGS.config, Path(FLAGS.output), {name: getattr(FLAGS, name) for name in DRAWN}
    if output.suffix != ".parquet" or output.is_dir():
        raise ValueError(f"--output={output}: expected a file that ends in .parquet")
    config.data.path = FLAGS.data
    chosen = choose_times(FLAGS.data, FLAGS.min_visits, FLAGS.seed, print)
    times, patients, tokens = read_histories(config, chosen, print)
    truth = simulate_outcomes(patients, times.prediction_times, tokens, FLAGS.seed, **drawn)
    table = to_table(times, truth)
    print("\n".join(summary(table, truth)))
    labels.write(table, output)
    write_truth(output.with_suffix(TRUTH), truth.hazard)
    print(f"wrote {output} and {output.with_suffix(TRUTH)}")
    print(f"next: python -m experiments.finetune --config=configs/survival.py --config.labels={output}", end=" ")
    print(f"--config.data.path={FLAGS.data} and the other --config.data flags of this command")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", survival.__file__, "Its section data gives the vocabulary.")
    flags.DEFINE_string("data", None, "A MEDS data set.", required=True)
    flags.DEFINE_string("output", None, "A .parquet file to write.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides times, what matters and outcomes.", lower_bound=0)
    flags.DEFINE_integer("min_visits", 3, "Visits before the prediction time.", lower_bound=1)
    flags.DEFINE_integer("num_rules", 3, "Functions of the history that matter: order, age and recency in turn.")
    flags.DEFINE_integer("group_size", 4, "Codes in each group of a rule.")
    flags.DEFINE_float("spread", 1.5, "Standard deviation of the log hazard.")
    flags.DEFINE_float("scale", 1825.0, "Days at which the baseline's cumulative hazard is 1.")
    flags.DEFINE_float("shape", 1.0, "Of the Weibull baseline; 1: a constant hazard.")
    flags.DEFINE_float("censored", 0.3, "Expected share of rows that are censored.")
    command.run(main)
