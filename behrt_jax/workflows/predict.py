"""Predictions of a fine-tuned run for the patients of a data set."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import dataset, prepare
from behrt_jax.data.config import DataConfig
from behrt_jax.finetuning import data as labeled_data
from behrt_jax.finetuning import head_regression, labeled_histories
from behrt_jax.finetuning import predict as predictions
from behrt_jax.labels import follow_up
from behrt_jax.labels.labels import read_labels
from behrt_jax.training import workdir as workdirs


def predict(
    workdir: str | Path, data: str, labels: str, output: str | Path, *, say: Callable[[str], None] = print
) -> pl.DataFrame:
    """Predicts with a fine-tuned run at prediction times of the patients of a MEDS data set, and writes a table.

    Args:
      workdir: written by `finetune`.
      data: a MEDS data set.
      labels: a file of `subject_id` and `prediction_time`; outcomes are copied if it has them.
      output: the Parquet file to write.
      say: receives progress messages.

    Returns:
      The table: binary predictions in the schema that meds-evaluation reads; classes, several labels and causes have
      one column each.

    Raises:
      ValueError: the run is not fine-tuned, or nothing can be predicted.
    """
    folder, output = Path(workdir), Path(output)
    config, vocabulary, model, params = workdirs.load(folder)
    if "objective" in config:
        raise ValueError(f"--workdir={folder}: was pre-trained; expected a run of experiments.finetune")
    fitted = predictions.read_fitted(folder)
    label_set = read_labels((labels,), say, with_outcomes=False)
    if label_set.kind != "times" and label_set.kind not in labeled_data.kinds(config):
        raise ValueError(f"--labels={labels}: holds {label_set.kind} labels; {folder} predicts another kind")
    with config.unlocked():
        config.data.path = data
    prepared = prepare.prepare(DataConfig(**config.data), vocabulary, splits=(), progress=say)
    say(prepare.describe_coverage(prepared.report, "all"))
    label_set = labeled_data.match(label_set, follow_up.read_lives(data), say)
    patients, tokens = dataset.read(prepared.folder, "all"), vocabulary.tokens
    histories = labeled_histories.find_histories(config, patients, label_set, tokens, "predicted", say)
    labeled_data.report_rest(len(label_set), [histories], say)
    if not len(histories.labels):
        raise ValueError(f"--labels={labels}: no row is of a patient with an event before; nothing to predict")
    histories = head_regression.add({"predicted": histories}, head_regression.load(folder, config), tokens)["predicted"]
    values = predictions.predict(config, predictions.score(config, model, params, histories), fitted)
    predictions.write(output, config, histories.labels, values, fitted)
    number = len(np.unique(histories.labels.subject_ids))
    say(f"written: {output}, {len(histories.labels):,} predictions of {number:,} patients")
    return pl.read_parquet(output)
