"""Compares values of measurements left out, as quantile tokens and continuous: pre-trained alike, then fine-tuned.

python -m experiments.labels --task=configs/tasks/diagnosis_prediabetes.yaml --data=data/synthea-1151 --output=LABELS
python -m experiments.studies.values --labels=LABELS [--workdir=runs/values] [--jobs=2]

Each variant and seed pre-trains configs/labs.py on the same events in the same rows, and fine-tunes the encoder on the
labels. Masked codes are compared on those of objective.targets alone (conditions, procedures, medications), which carry
no value, with these as the only candidates, so that all variants choose among the same tokens. Of each patient,
`--max_labels_per_patient` labels of each outcome are kept, chosen by a hash of their time: some patients have a
hundred. Finished runs are not repeated.
"""

import re
from pathlib import Path

import numpy as np
import polars as pl
from absl import flags

from behrt_jax.data.next_visit_targets import target_codes
from behrt_jax.evaluation.loaded_run import load_run
from behrt_jax.evaluation.masked_codes import masked_batches
from behrt_jax.finetuning import sampling
from behrt_jax.labels.label_files import write_labels
from behrt_jax.labels.labels import read_labels
from behrt_jax.objectives import scoring
from experiments import _cli
from experiments.studies import sweep

CONTINUOUS = {"data.value_encoding": "continuous", "model.value_encoding": "film"}
VARIANTS = {
    "no values": {"data.value_encoding": "none"},
    "quantile tokens": {"data.value_encoding": "bins"},
    "continuous, read": CONTINUOUS,
    "continuous, read and predicted": {**CONTINUOUS, "objective.value_weight": 1.0},
}
COLUMNS = {
    "loss": "masked-code loss, nats",
    "accuracy": "masked-code accuracy",
    "classification/auroc": "AUROC",
    "classification/auprc": "AUPRC",
}


def make_runs(folder: Path, name: str, seed: int, labels: str, steps: tuple[int, int], extra: list[str]) -> list:
    """Returns the runs of a variant and a seed: pre-training, and the fine-tuning that rests on it.

    Args:
      folder: the folder of all runs.
      name: of the variant.
      seed: of both runs.
      labels: a file of binary labels.
      steps: numbers of updates of pre-training and of fine-tuning.
      extra: KEY=VALUE for both recipes.
    """
    slug, options = re.sub("[^a-z]+", "-", name.lower()), [f"--config.{each}" for each in extra]
    encoder, classifier = (folder / f"{slug}-{kind}-seed-{seed}" for kind in ("pretrained", "finetuned"))
    same_rows = {"data.unique_codes_in_visit": False}  # whether a code repeats would depend on how values are encoded
    keys = {**same_rows, **VARIANTS[name], "seed": seed, "train.num_steps": steps[0], "train.evaluate_every": steps[0]}
    tuned = {"pretrained": encoder, "labels": labels, "seed": seed}
    tuned |= {"train.num_steps": steps[1], "train.evaluate_every": max(1, steps[1] // 2)}
    return [
        sweep.training("pretrain", "configs/labs.py", encoder, keys, *options),
        sweep.training("finetune", "configs/classification.py", classifier, tuned, *options),
    ]


def cap_labels(source: str, output: Path, most: int) -> None:
    """Writes at most `most` binary labels per patient and outcome of a file to another."""
    labels = read_labels([source])
    if labels.kind != "binary":
        raise ValueError(f"--labels={source}: found {labels.kind} labels; expected binary ones")
    kept = labels.take(sampling.cap(labels, most))
    columns = {"subject_id": kept.subject_ids, "prediction_time": kept.prediction_times}
    output.parent.mkdir(parents=True, exist_ok=True)
    write_labels(pl.DataFrame({**columns, "boolean_value": kept.values[:, 0] > 0}), output)


def score_targets(workdir: Path) -> dict[str, float]:
    """Returns the mean loss and accuracy on tuning's masked codes of `objective.targets`, scored among these alone."""
    run = load_run(workdir, "tuning", None)
    masked = list(masked_batches(run, run.patients, run.recipe.evaluation.num_mask_samples))
    is_target = target_codes(run.vocabulary, run.recipe.objective.targets, run.recipe.objective.min_patients)
    scores = scoring.score(scoring.make_score_step(run.task.model, is_target), run.params, masked)
    chosen = is_target[np.concatenate([each.labels for each in masked])]
    return {name: float(scores.values[name][chosen].mean()) for name in ("loss", "accuracy")}


def read_runs(runs: list[sweep.Run]) -> dict[str, float]:
    """Reads the `COLUMNS` of a pre-trained run and of the fine-tuned one."""
    metrics = sweep.read_evaluation(runs[1].workdir)["metrics"]
    return {**score_targets(runs[0].workdir), **{name: entry["value"] for name, entry in metrics.items()}}


def format_markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """Formats means and ranges over the seeds of each variant."""
    rows = [
        [name, *(sweep.mean_and_range([each[key] for each in found if key in each]) for key in COLUMNS)]
        for name, found in results.items()
    ]
    number = len(next(iter(results.values())))
    return f"{number} seeds: mean [lowest, highest]\n\n{sweep.format_table(['', *COLUMNS.values()], rows)}"


def main() -> None:
    """Runs the command."""
    folder, steps = Path(FLAGS.workdir), (FLAGS.num_steps, FLAGS.finetuning_steps)
    cap_labels(FLAGS.labels, labels := folder / "labels.parquet", FLAGS.max_labels_per_patient)
    runs = {
        (name, seed): make_runs(folder, name, seed, str(labels), steps, FLAGS.set)
        for seed in range(FLAGS.seeds)
        for name in VARIANTS
    }
    for stage in (0, 1):
        sweep.run_all({f"{name}, seed {seed}": each[stage] for (name, seed), each in runs.items()}, FLAGS.jobs)
    results = {}
    for (name, _), each in runs.items():
        results.setdefault(name, []).append(read_runs(each))
    table = format_markdown(results)
    (folder / "values.md").write_text(table)
    print(f"{table}\nmasked codes on tuning, the task on held-out patients; written: {folder / 'values.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    sweep.define_flags("runs/values")
    flags.DEFINE_string("labels", None, "A file of binary labels that measurements may help to predict.", required=True)
    flags.DEFINE_integer("max_labels_per_patient", 1, "Labels of each outcome per patient.", lower_bound=1)
    flags.DEFINE_integer("seeds", 3, "Runs of each variant.", lower_bound=1)
    flags.DEFINE_integer("num_steps", 600, "Updates of pre-training.", lower_bound=1)
    flags.DEFINE_integer("finetuning_steps", 100, "Updates of fine-tuning.", lower_bound=1)
    flags.DEFINE_multi_string("set", [], "KEY=VALUE for both recipes, such as train.batch_size=16; may be repeated.")
    _cli.run(main)
