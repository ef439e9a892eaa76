"""Predicts an outcome from few labels: a frozen encoder's embeddings and counts of codes, beside age and sex.

python -m experiments.probe --workdir=DIR --labels=FILE [--sizes=16,64,256,all] [--draws=10] [--data=DIR]
    [--predict=FILE --output=FILE [--predict_data=DIR]]

Ridge regressions are fitted to the labels of k patients of train, and how far each block of features counts is weighted
by cross-validation within the k (`behrt_jax.ridge`). The same from counts, age and sex alone, and age alone, stand
beside. For each size, `--draws` samples of patients are drawn and all of held_out are scored. With `--predict`, all
labels of train are fitted to, and the subjects and prediction times of a file are scored.
"""

from pathlib import Path

import numpy as np
import polars as pl
from absl import flags
from ml_collections import ConfigDict
from scipy.special import expit
from tqdm import tqdm

from behrt_jax import workdir
from behrt_jax.data import dataset
from behrt_jax.data import labels as label_files
from behrt_jax.data.config import DataConfig
from behrt_jax.data.labels import Labels
from behrt_jax.data.prepare import prepare
from experiments import command, draws, few_labels_arms, few_labels_features, labelled, outcome_data
from experiments.few_labels_features import Reader
from experiments.few_labels_scores import METRICS, check_kind, rank
from experiments.few_labels_table import AGE, COUNTS, HEADS, OURS
from experiments.labelled import Labelled


def read_sizes(words: list[str]) -> list[int]:
    """Returns the numbers of patients, ascending; `all` is a very large one."""
    wrong = [word for word in words if word != "all" and not (word.isdecimal() and int(word) > 1)]
    if wrong:
        raise ValueError(f"--sizes: found {', '.join(wrong)}; expected numbers of patients above 1, or all")
    return sorted({np.iinfo(int).max if word == "all" else int(word) for word in words})


def load(folder: str, data: str | None) -> workdir.Loaded:
    """Loads a pre-trained run, to read its own data or another MEDS data set."""
    found = workdir.load(Path(folder))
    if "objective" not in found.config:
        raise ValueError(f"--workdir={folder}: was fine-tuned; expected a run of experiments.pretrain")
    with found.config.unlocked():
        # Histories as pre-training saw them: without a token at the prediction time.
        found.config.history = ConfigDict({"include_at": False, "mark": False, "age_and_sex": True})
        found.config.data.path = data or found.config.data.path
    found.config.lock()
    return found


def read(found: workdir.Loaded, folder: Path, labels: Labels, split: str) -> Labelled:
    """Reads the labels that are of a split, or of `all`, and the histories at their prediction times."""
    patients = dataset.read(folder, split)
    return labelled.find_histories(found.config, patients, labels, found.vocabulary.tokens, split, print)


def read_labels(file: str, data: str, with_outcomes: bool = True) -> Labels:
    """Reads a file of labels, without those that do not fit the data."""
    labels = label_files.read_labels([file], print, with_outcomes)
    return outcome_data.match(labels, outcome_data.read_lives(data), print)


def compare(reader: Reader, train: Labelled, held_out: Labelled, sizes: list[int], number: int) -> pl.DataFrame:
    """Scores held_out by each arm, from each size and draw: `patients, arm, draw, score`."""
    known, wanted = (reader.blocks(part.histories, part.labels.prediction_times) for part in (train, held_out))
    ages = few_labels_features.ages(held_out.histories, held_out.labels.prediction_times)
    rows = [{"patients": 0, "arm": AGE, "draw": 0, "score": rank(ages, held_out.labels).value}]
    everyone = len(np.unique(train.labels.subject_ids))
    plan = [(size, draw) for size in sizes for draw in range(number if size < everyone else 1)]
    for size, draw in tqdm(plan, unit="draw", desc="probing"):
        drawn = draws.draw_rows(train.labels, size, draw)
        for arm in (COUNTS, OURS):
            scores = few_labels_arms.fit_and_score(arm, known, wanted, train.labels, drawn)
            score = rank(scores, held_out.labels).value
            rows.append({"patients": min(size, everyone), "arm": arm, "draw": draw, "score": score})
    return pl.DataFrame(rows)


def predict(reader: Reader, train: Labelled, wanted: Labelled) -> pl.DataFrame:
    """Fits all labels of train and scores histories: a probability, or a score that is higher for earlier events."""
    fitted = few_labels_arms.fit(OURS, reader.blocks(train.histories, train.labels.prediction_times), train.labels)
    scores = fitted(reader.blocks(wanted.histories, wanted.labels.prediction_times))
    columns = {"subject_id": wanted.labels.subject_ids, "prediction_time": wanted.labels.prediction_times}
    if train.labels.kind == "survival":
        return pl.DataFrame({**columns, f"score/{train.labels.names[0]}": scores})
    said = expit(scores).astype(np.float32)
    return pl.DataFrame({**columns, "predicted_boolean_value": said >= 0.5, "predicted_boolean_probability": said})


def read_wanted(found: workdir.Loaded) -> Labelled:
    """Reads the histories to predict, of any split."""
    data = FLAGS.predict_data or found.config.data.path
    config = DataConfig(**{**found.config.data, "path": data})
    prepared = prepare(config, found.vocabulary, splits=(), progress=print)
    print(labelled.describe_coverage(prepared.report, "all"))
    wanted = read(found, prepared.folder, read_labels(FLAGS.predict, data, with_outcomes=False), "all")
    if not len(wanted.labels):
        raise ValueError(f"--predict={FLAGS.predict}: no row is of a patient with an event before; nothing to predict")
    return wanted


def main() -> None:
    """Runs the command."""
    sizes = read_sizes(FLAGS.sizes)
    if bool(FLAGS.predict) != bool(FLAGS.output):
        raise ValueError("--predict and --output: found one without the other; expected both, or neither")
    found = load(FLAGS.workdir, FLAGS.data)
    labels = read_labels(FLAGS.labels, found.config.data.path)
    check_kind(labels, f"--labels={FLAGS.labels}")
    folder = prepare(DataConfig(**found.config.data), found.vocabulary, progress=print).folder
    train = read(found, folder, labels, "train")
    label_files.check_learnable(train.labels, "train")
    reader = Reader(found, dataset.read(folder, "train"), Path(FLAGS.features), random=False)
    if FLAGS.predict:
        wanted = read_wanted(found)
        predict(reader, train, wanted).write_parquet(FLAGS.output)
        number = len(np.unique(wanted.labels.subject_ids))
        print(f"written: {FLAGS.output}, {len(wanted.labels):,} predictions of {number:,} patients")
        return
    held_out = read(found, folder, labels, "held_out")
    label_files.check_learnable(held_out.labels, "held_out")
    table = compare(reader, train, held_out, sizes, FLAGS.draws)
    print(f"held out: {METRICS[labels.kind]}, mean [lowest, highest] of {FLAGS.draws} draws of patients")
    for (number, arm), part in table.group_by("patients", "arm", maintain_order=True):
        scores = part["score"]
        print(f"{number:>8,}  {HEADS[str(arm)]:<22} {scores.mean():.3f} [{scores.min():.3f}, {scores.max():.3f}]")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_string("labels", None, "A file of labels.", required=True)
    flags.DEFINE_list("sizes", ["16", "64", "256", "all"], "Numbers of labelled patients.")
    flags.DEFINE_integer("draws", 10, "Samples of patients of each size.", lower_bound=1)
    flags.DEFINE_string("data", None, "Another MEDS data set than the run's own.")
    flags.DEFINE_string(
        "predict", None, "A file of subjects and prediction times to score, after all of train's labels."
    )
    flags.DEFINE_string("predict_data", None, "Another MEDS data set to predict on than the labels' own.")
    flags.DEFINE_string("output", None, "The Parquet file of these predictions.")
    flags.DEFINE_string("features", "runs/features", "Where features are kept, as embedding takes long.")
    command.run(main)
