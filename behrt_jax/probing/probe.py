"""Predicts an outcome from few labels: frozen embeddings and code counts, with age and sex."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import expit
from tqdm import tqdm

from behrt_jax.data import dataset
from behrt_jax.data import prepare as data_prepare
from behrt_jax.data.prepare import prepare
from behrt_jax.finetuning import data as labeled_data
from behrt_jax.finetuning import labeled_histories, sampling
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.labels import follow_up
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.labels import Labels
from behrt_jax.probing import arms, features
from behrt_jax.probing.features import Reader
from behrt_jax.probing.scores import rank
from behrt_jax.probing.table import AGE, COUNTS, OURS
from behrt_jax.training import workdir
from behrt_jax.training.recipe import HistoryConfig, PretrainingRecipe

logger = logging.getLogger(__name__)

# Histories as in pre-training: without a prediction token.
HISTORY = HistoryConfig(include_at=False, prediction_token=False)


def read_sizes(words: list[str]) -> list[int]:
    """Parses numbers of patients, in ascending order; `all` becomes a very large number."""
    invalid = [word for word in words if word != "all" and not (word.isdecimal() and int(word) > 1)]
    if invalid:
        raise ValueError(f"--sizes: found {', '.join(invalid)}; expected numbers of patients above 1, or all")
    return sorted({np.iinfo(int).max if word == "all" else int(word) for word in words})


def load(folder: str, data: str | None) -> workdir.LoadedRun[PretrainingRecipe]:
    """Loads a pre-trained run, with its data set or another MEDS data set."""
    run = workdir.load_pretraining(folder, f"--workdir={folder}")
    recipe = dataclasses.replace(
        run.recipe, data=dataclasses.replace(run.recipe.data, path=data or run.recipe.data.path)
    )
    return run._replace(recipe=recipe)


def read(found: workdir.LoadedRun[PretrainingRecipe], folder: Path, labels: Labels, split: str) -> LabeledHistories:
    """Reads the labels of a split, or of `all`, and the histories at their prediction times."""
    patients = dataset.read(folder, split)
    arguments = (found.recipe.data.row_length, patients, labels, found.vocabulary.tokens, split)
    return labeled_histories.find_histories(HISTORY, *arguments)


def read_labels(file: str, data: str, with_outcomes: bool = True) -> Labels:
    """Reads a file of labels and leaves out those that do not fit the data."""
    labels = label_data.read_labels([file], with_outcomes)
    return labeled_data.match(labels, follow_up.read_lives(data))


def compare(
    reader: Reader, train: LabeledHistories, held_out: LabeledHistories, sizes: list[int], number: int
) -> pl.DataFrame:
    """Scores held_out with each arm, size and draw: columns `patients, arm, draw, score`."""
    train_blocks, held_out_blocks = (
        reader.blocks(part.histories, part.labels.prediction_times) for part in (train, held_out)
    )
    ages = features.ages(held_out.histories, held_out.labels.prediction_times)
    rows = [{"patients": 0, "arm": AGE, "draw": 0, "score": rank(ages, held_out.labels).value}]
    everyone = len(np.unique(train.labels.subject_ids))
    plan = [(size, draw) for size in sizes for draw in range(number if size < everyone else 1)]
    for size, draw in tqdm(plan, unit="draw", desc="probing"):
        sample_rows = sampling.draw_rows(train.labels, size, draw)
        for arm in (COUNTS, OURS):
            scores = arms.fit_and_score(arm, train_blocks, held_out_blocks, train.labels, sample_rows)
            score = rank(scores, held_out.labels).value
            rows.append({"patients": min(size, everyone), "arm": arm, "draw": draw, "score": score})
    return pl.DataFrame(rows)


def predict(reader: Reader, train: LabeledHistories, wanted: LabeledHistories) -> pl.DataFrame:
    """Fits all labels of train and scores histories: probabilities, or scores that are higher for earlier events."""
    scorer = arms.fit(OURS, reader.blocks(train.histories, train.labels.prediction_times), train.labels)
    scores = scorer(reader.blocks(wanted.histories, wanted.labels.prediction_times))
    columns = {"subject_id": wanted.labels.subject_ids, "prediction_time": wanted.labels.prediction_times}
    if train.labels.kind == "survival":
        return pl.DataFrame({**columns, f"score/{train.labels.names[0]}": scores})
    probabilities = expit(scores).astype(np.float32)
    return pl.DataFrame(
        {**columns, "predicted_boolean_value": probabilities >= 0.5, "predicted_boolean_probability": probabilities}
    )


def read_wanted(found: workdir.LoadedRun[PretrainingRecipe], file: str, data: str) -> LabeledHistories:
    """Reads the histories to predict, of any split, at the subjects and times of a file."""
    prepared = prepare(dataclasses.replace(found.recipe.data, path=data), found.vocabulary, splits=())
    data_prepare.log_coverage(prepared.report, "all")
    histories = read(found, prepared.folder, read_labels(file, data, with_outcomes=False), "all")
    if not len(histories.labels):
        raise ValueError(f"--predict={file}: no row is of a patient with an event before; nothing to predict")
    return histories
