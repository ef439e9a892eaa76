"""Predicts with a fine-tuned model for patients of a MEDS data set, at prediction times.

python -m experiments.predict --workdir=DIR --data=DIR --labels=FILE --output=FILE

The file needs `subject_id` and `prediction_time` alone; outcomes are copied where it has them. Binary predictions are
in the schema that meds-evaluation reads; classes, several labels and causes have a column each.
"""

from pathlib import Path

import numpy as np
from absl import flags

from behrt_jax.data import dataset
from behrt_jax.data import prepare as data_prepare
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.finetuning import data, head_regression, labeled_histories, predict
from behrt_jax.labels import follow_up
from behrt_jax.labels import labels as label_data
from behrt_jax.training import workdir
from experiments import _cli


def main() -> None:
    """Runs the command."""
    folder, output = Path(FLAGS.workdir), Path(FLAGS.output)
    config, vocabulary, model, params = workdir.load(folder)
    if "objective" in config:
        raise ValueError(f"--workdir={folder}: was pre-trained; expected a run of experiments.finetune")
    fitted = predict.read_fitted(folder)
    labels = label_data.read_labels((FLAGS.labels,), print, with_outcomes=False)
    if labels.kind != "times" and labels.kind not in data.kinds(config):
        raise ValueError(f"--labels={FLAGS.labels}: holds {labels.kind} labels; {folder} predicts another kind")
    with config.unlocked():
        config.data.path = FLAGS.data
    prepared = prepare(DataConfig(**config.data), vocabulary, splits=(), progress=print)
    print(data_prepare.describe_coverage(prepared.report, "all"))
    labels = data.match(labels, follow_up.read_lives(FLAGS.data), print)
    patients, tokens = dataset.read(prepared.folder, "all"), vocabulary.tokens
    found = labeled_histories.find_histories(config, patients, labels, tokens, "predicted", print)
    data.report_rest(len(labels), [found], print)
    if not len(found.labels):
        raise ValueError(f"--labels={FLAGS.labels}: no row is of a patient with an event before; nothing to predict")
    found = head_regression.add({"predicted": found}, head_regression.load(folder, config), tokens)["predicted"]
    said = predict.predict(config, predict.score(config, model, params, found), fitted)
    predict.write(output, config, found.labels, said, fitted)
    number = len(np.unique(found.labels.subject_ids))
    print(f"written: {output}, {len(found.labels):,} predictions of {number:,} patients")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.finetune wrote.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set.", required=True)
    flags.DEFINE_string("labels", None, "A file of subjects and prediction times.", required=True)
    flags.DEFINE_string("output", None, "The Parquet file to write.", required=True)
    _cli.run(main)
