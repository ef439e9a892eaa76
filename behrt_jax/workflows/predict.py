"""Predictions of a fine-tuned run for the patients of a data set."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import dataset, prepare
from behrt_jax.finetuning import data as labeled_data
from behrt_jax.finetuning import head_features, labeled_histories
from behrt_jax.finetuning import predict as predictions
from behrt_jax.labels import follow_up
from behrt_jax.labels.labels import read_labels
from behrt_jax.training import workdir as workdirs

logger = logging.getLogger(__name__)


def predict(workdir: str | Path, data: str, labels: str, output: str | Path) -> pl.DataFrame:
    """Predicts with a fine-tuned run at prediction times of the patients of a MEDS data set, and writes a table.

    Args:
      workdir: written by `finetune`.
      data: a MEDS data set.
      labels: a file of `subject_id` and `prediction_time`; outcomes are copied if it has them.
      output: the Parquet file to write.

    Returns:
      The table: binary predictions in the schema that meds-evaluation reads; classes, several labels and causes have
      one column each.

    Raises:
      ValueError: the run is not fine-tuned, or nothing can be predicted.
    """
    folder, output = Path(workdir), Path(output)
    recipe, facts, vocabulary, model, params = workdirs.load_finetuning(folder, f"--workdir={folder}")
    fitted = predictions.read_fitted(folder)
    label_set = read_labels((labels,), with_outcomes=False)
    if label_set.kind != "times" and label_set.kind not in labeled_data.kinds(recipe):
        raise ValueError(f"--labels={labels}: holds {label_set.kind} labels; {folder} predicts another kind")
    prepared = prepare.prepare(dataclasses.replace(recipe.data, path=data), vocabulary, splits=())
    prepare.log_coverage(prepared.report, "all")
    label_set = labeled_data.match(label_set, follow_up.read_lives(data))
    patients, tokens = dataset.read(prepared.folder, "all"), vocabulary.tokens
    arguments = (recipe.history, recipe.data.row_length, patients, label_set, tokens, "predicted")
    histories = labeled_histories.find_histories(*arguments)
    labeled_data.report_rest(len(label_set), [histories])
    if not len(histories.labels):
        raise ValueError(f"--labels={labels}: no row is of a patient with an event before; nothing to predict")
    regression = head_features.load(folder, recipe.head)
    histories = head_features.select(recipe.head, {"predicted": histories}, tokens, regression)["predicted"]
    logits = predictions.score(recipe, model, params, histories)
    values = predictions.predict(recipe.outcome, logits, fitted)
    predictions.write(output, histories.labels, values, facts.names, fitted, recipe.evaluation.horizons)
    number = len(np.unique(histories.labels.subject_ids))
    logger.info(f"written: {output}, {len(histories.labels):,} predictions of {number:,} patients")
    return pl.read_parquet(output)
