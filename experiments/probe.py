"""Predicts an outcome from few labels, by ridge regression on frozen embeddings, counts of codes, age and sex.

python -m experiments.probe --workdir=DIR --labels=FILE [--sizes=16,64,256,all] [--draws=10] [--data=DIR]
    [--predict=FILE --output=FILE [--predict_data=DIR]]

Fits ridge regressions to the labels of k patients of train, and weights blocks of features by cross-validation within
the k (`behrt_jax.regression.ridge`). Compares with the same on counts, age and sex alone, and with age alone. Draws
`--draws` samples of patients for each size and scores all of held_out. With `--predict`, fits all labels of train and
scores the subjects and prediction times of a file.
"""

from pathlib import Path

import numpy as np
from absl import flags

from behrt_jax.data import dataset
from behrt_jax.data.prepare import prepare
from behrt_jax.labels import labels as label_data
from behrt_jax.probing.features import Reader
from behrt_jax.probing.probe import compare, load, predict, read, read_labels, read_sizes, read_wanted
from behrt_jax.probing.scores import METRICS, check_kind
from behrt_jax.probing.table import HEADS
from experiments import _cli


def main() -> None:
    """Runs the command."""
    sizes = read_sizes(FLAGS.sizes)
    if bool(FLAGS.predict) != bool(FLAGS.output):
        raise ValueError("--predict and --output: found one without the other; expected both, or neither")
    loaded = load(FLAGS.workdir, FLAGS.data)
    labels = read_labels(FLAGS.labels, loaded.recipe.data.path)
    check_kind(labels, f"--labels={FLAGS.labels}")
    folder = prepare(loaded.recipe.data, loaded.vocabulary).folder
    train = read(loaded, folder, labels, "train")
    label_data.check_learnable(train.labels, "train")
    reader = Reader(loaded, dataset.read(folder, "train"), Path(FLAGS.features), random=False)
    if FLAGS.predict:
        queries = read_wanted(loaded, FLAGS.predict, FLAGS.predict_data or loaded.recipe.data.path)
        predict(reader, train, queries).write_parquet(FLAGS.output)
        number = len(np.unique(queries.labels.subject_ids))
        print(f"written: {FLAGS.output}, {len(queries.labels):,} predictions of {number:,} patients")
        return
    held_out = read(loaded, folder, labels, "held_out")
    label_data.check_learnable(held_out.labels, "held_out")
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
    _cli.run(main)
