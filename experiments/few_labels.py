"""Compares pre-trained with from scratch where few patients are labelled: both are fine-tuned by the same recipe.

python -m experiments.few_labels --pretrained=runs/small --labels=NAME=FILE,NAME=FILE,... [--sizes=16,64,256]
    [--draws=3] [--most_labels=4] [--workdir=runs/few-labels] [--config.KEY=VALUE ...]

For each task, size k and draw, k patients of train have labels to fit, and k of tuning for early stopping; all of held_out
are scored. From scratch has the data and model keys and the vocabulary of the pre-trained run, so that only the weights
differ. The same command goes on where it was stopped; sizes, draws and tasks may be added later.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from behrt_jax import metrics, workdir
from behrt_jax.data import labels as label_files
from behrt_jax.data.hashing import hash_integers
from behrt_jax.metrics import Estimate
from configs import default
from experiments import command, few_labels_run, labelled, outcome_data, pretrained
from experiments.few_labels_run import Task
from experiments.probe import METRICS, read_sizes
from experiments.tables import format_signed

ARMS = ("scratch", "pretrained")
RESULTS_FILE = "results.jsonl"
TABLE_FILE = "few_labels.md"


def recipe() -> ConfigDict:
    """Returns the recipes of classification and survival in one, of which each task takes its own."""
    config = default.get_finetune_config("classification")
    with config.unlocked():
        config.survival = default.get_finetune_config("survival").survival
        config.train.update(num_steps=150, evaluate_every=25, patience=3)
    return config


def read_task(config: ConfigDict, file: str, most: int, folder: Path, say: Callable[[str], None]) -> Task:
    """Reads a task, with at most so many labels of each outcome a patient, and notes its recipe in a folder."""
    labels = label_files.read_labels([file], lambda line: None)
    if labels.kind not in METRICS or len(labels.names) > 1:
        raise ValueError(f"--labels={file}: found {labels.kind} labels; expected one binary label, or times to an event")
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.labels, config.most_labels = file, most
        del config["classification" if labels.kind == "survival" else "survival"]
    begun = pretrained.load(config)
    prepared, splits = outcome_data.read_splits(config, begun.vocabulary, say)
    splits = {name: labelled.take(found, cap(found.labels, most)) for name, found in splits.items()}
    for name, found in splits.items():
        label_files.check_learnable(found.labels, name)
        say(f"{name}: {len(found.labels):,} labels are taken: {labelled.describe(found.labels)}")
    outcome_data.warn_of_few(splits["held_out"].labels, say)
    workdir.open_workdir(folder, config, prepared.vocabulary)
    return Task(config, prepared, splits, begun.params)


def cap(labels: label_files.Labels, most: int) -> np.ndarray:
    """Returns the rows of at most so many labels of each outcome a patient, those with the lowest hash of their time."""
    rank = hash_integers(labels.subject_ids, labels.prediction_times.astype(np.int64))
    rows = {"subject": labels.subject_ids, "outcome": labels.outcomes()[:, 0], "rank": rank, "row": range(len(rank))}
    return pl.DataFrame(rows).sort("rank").group_by("subject", "outcome").head(most)["row"].sort().to_numpy()


def read_results(folder: Path) -> dict[tuple[int, int, str], Estimate]:
    """Reads what finished runs of a task reached, by size, draw and arm; a last line cut short by a kill is removed."""
    file = folder / RESULTS_FILE
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith("\n"):
        file.write_text("".join(lines := lines[:-1]))
    found = map(json.loads, lines)
    return {
        (line["size"], line["draw"], line["arm"]): Estimate(line["value"], np.array(line["replicates"]), line["n"])
        for line in found
    }


def average(found: dict[tuple[int, int, str], Estimate], size: int, draws: int, arm: str) -> Estimate:
    """Averages the draws of a size; the resamples of patients are the same in all."""
    values, replicates, numbers = zip(*(found[size, draw, arm] for draw in range(draws)), strict=True)
    return Estimate(float(np.mean(values)), np.mean(replicates, axis=0), numbers[0])


def format_table(found: dict[str, dict], counts: dict[str, str], sizes: list[int], draws: int) -> str:
    """Lays out a table in Markdown: for each task and size both arms, and how far the pre-trained one is above."""
    heads = ["", "held out, with the outcome"]
    for size in sizes:
        heads += [f"{size:,}: scratch", "pre-trained", "difference"]
    lines, above = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"], {size: [] for size in sizes}
    for name, results in found.items():
        cells = [name, counts[name]]
        for size in sizes:
            scratch, ours = (average(results, size, draws, arm) for arm in ARMS)
            change = metrics.difference(ours, scratch)
            cells += [f"{scratch.value:.3f}", f"{ours.value:.3f}", format_signed(change)]
            above[size].append(np.sign(change["value"]) + np.sign(max(change["low"], 0)))
        lines.append(f"| {' | '.join(cells)} |")
    for size, signs in above.items():
        surely = f"in {sum(sign > 1 for sign in signs)} the interval too"
        lines.append(f"\n{size:,} patients: above in {sum(sign > 0 for sign in signs)} of {len(signs)} tasks, {surely}.")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the command."""
    config, folder, sizes = FLAGS.config, Path(FLAGS.workdir), read_sizes(FLAGS.sizes)
    if wrong := [word for word in FLAGS.labels if not all(word.partition("="))]:
        raise ValueError(f"--labels: found {', '.join(wrong)}; expected NAME=FILE, separated by commas")
    files = dict(word.split("=", 1) for word in FLAGS.labels)
    with config.unlocked():
        config.pretrained = FLAGS.pretrained
    runs = [(size, draw, arm) for size in sizes for draw in range(FLAGS.draws) for arm in ARMS]
    found, counts, compiled = {}, {}, {}
    with tqdm(total=len(files) * len(runs), unit="run", mininterval=1) as bar:
        for name, file in files.items():
            bar.write(f"{name}:")
            task = read_task(config, file, FLAGS.most_labels, folder / name, bar.write)
            found[name] = read_results(folder / name)
            for size, draw, arm in runs:
                bar.set_postfix_str(f"{name}, {size} patients, draw {draw}, {arm}")
                if (size, draw, arm) not in found[name]:
                    its = few_labels_run.run(task, size, draw, arm == "pretrained", compiled)
                    found[name][size, draw, arm] = its
                    line = {"size": size, "draw": draw, "arm": arm, "value": its.value, "n": its.n}
                    with (folder / name / RESULTS_FILE).open("a") as target:
                        target.write(json.dumps({**line, "replicates": its.replicates.tolist()}) + "\n")
                bar.update()
            labels = task.splits["held_out"].labels
            patients = (labels.subject_ids, labels.subject_ids[labels.outcomes()[:, 0]])
            of, came = (len(np.unique(ids)) for ids in patients)
            counts[name] = f"{METRICS[labels.kind]}: {came:,} of {of:,} patients"
    table = format_table(found, counts, sizes, FLAGS.draws)
    (folder / TABLE_FILE).write_text(table)
    print(f"means of {FLAGS.draws} draws, 95% intervals over held-out patients\n\n{table}\nwritten: {folder / TABLE_FILE}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("pretrained", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_list("labels", None, "Names of tasks and their files of labels: NAME=FILE,NAME=FILE.", required=True)
    flags.DEFINE_list("sizes", ["16", "64", "256"], "Numbers of labelled patients, or all.")
    flags.DEFINE_integer("draws", 3, "Samples of patients of each size.", lower_bound=1)
    flags.DEFINE_integer("most_labels", 4, "Labels of each outcome that are taken of a patient.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/few-labels", "Where results are kept.")
    config_flags.DEFINE_config_dict("config", recipe())
    command.keep_memory()
    command.run(main)
