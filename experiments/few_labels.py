"""Compares pre-trained with from scratch where few patients are labelled: both are fine-tuned by the same recipe.

python -m experiments.few_labels --pretrained=runs/small --labels=NAME=FILE,NAME=FILE,... [--sizes=16,64,256]
    [--draws=3] [--most_labels=4] [--noprobe_first] [--workdir=DIR] [--config.KEY=VALUE ...]

For each task, size k and draw, k patients of train have labels to fit, and k of tuning for early stopping; all of
held_out are scored. From scratch has the data and model keys and the vocabulary of the pre-trained run, so that only
weights differ. The same command goes on where it was stopped; sizes, draws and tasks may be added later.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from behrt_jax import metrics
from behrt_jax.metrics import Estimate
from configs import default
from experiments import command, few_labels_run
from experiments.labelled import Labelled
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


def read_results(folder: Path) -> dict[tuple[int, int, str], Estimate]:
    """Reads what finished runs of a task reached, by size, draw and arm; a last line cut short by a kill is removed."""
    file = folder / RESULTS_FILE
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
        file.write_text("".join(lines))
    found = {(line["size"], line["draw"], line["arm"]): line for line in map(json.loads, lines)}
    return {run: Estimate(its["value"], np.array(its["replicates"]), its["n"]) for run, its in found.items()}


def average(found: dict[tuple[int, int, str], Estimate], size: int, draws: int, arm: str) -> Estimate:
    """Averages the draws of a size; the resamples of patients are the same in all."""
    values, replicates, numbers = zip(*(found[size, draw, arm] for draw in range(draws)), strict=True)
    return Estimate(float(np.mean(values)), np.mean(replicates, axis=0), numbers[0])


def format_table(found: dict[str, dict], counts: dict[str, str], sizes: list[int], draws: int) -> str:
    """Lays out a table in Markdown: for each task and size both arms, and how far the pre-trained one is above."""
    heads, above = ["", "held out, with the outcome"], {size: [] for size in sizes}
    for size in above:
        heads += [f"{show(size)}: scratch", "pre-trained", "difference"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, results in found.items():
        cells = [name, counts[name]]
        for size in above:
            scratch, ours = (average(results, size, draws, arm) for arm in ARMS)
            change = metrics.difference(ours, scratch)
            cells += [f"{scratch.value:.3f}", f"{ours.value:.3f}", format_signed(change)]
            above[size].append((change["value"] > 0, change["low"] > 0))
        lines.append(f"| {' | '.join(cells)} |")
    for size, signs in above.items():
        tasks, surely = np.sum(signs, axis=0)
        lines.append(f"\n{show(size)} patients: above in {tasks} of {len(signs)} tasks, in {surely} with the interval.")
    return "\n".join(lines) + "\n"


def show(size: int) -> str:
    """Writes a number of patients; one that no data set has is `all`."""
    return f"{size:,}" if size < np.iinfo(int).max else "all"


def count(found: Labelled) -> str:
    """Says what is measured, and of how many patients with the outcome."""
    ids = found.labels.subject_ids
    of, came = (len(np.unique(each)) for each in (ids, ids[found.labels.outcomes()[:, 0]]))
    return f"{METRICS[found.labels.kind]}, {came:,} of {of:,} patients"


def main() -> None:
    """Runs the command."""
    config, folder, sizes = FLAGS.config, Path(FLAGS.workdir), read_sizes(FLAGS.sizes)
    if wrong := [word for word in FLAGS.labels if not all(word.partition("="))]:
        raise ValueError(f"--labels: found {', '.join(wrong)}; expected NAME=FILE, separated by commas")
    with config.unlocked():
        config.pretrained = FLAGS.pretrained
    files = dict(word.split("=", 1) for word in FLAGS.labels)
    runs = [(size, draw, arm) for size in sizes for draw in range(FLAGS.draws) for arm in ARMS]
    found, counts, compiled = {}, {}, {}
    with tqdm(total=len(files) * len(runs), unit="run", mininterval=1) as bar:
        for name, file in files.items():
            bar.write(f"{name}:")
            task = few_labels_run.read_task(
                config, file, FLAGS.most_labels, FLAGS.probe_first, folder / name, bar.write
            )
            found[name], counts[name] = read_results(folder / name), count(task.splits["held_out"])
            for size, draw, arm in runs:
                bar.set_postfix_str(f"{name}, {show(size)} patients, draw {draw}, {arm}")
                if (size, draw, arm) not in found[name]:
                    its = few_labels_run.run(task, size, draw, arm == "pretrained", compiled)
                    found[name][size, draw, arm] = its
                    line = {"size": size, "draw": draw, "arm": arm, "value": its.value, "n": its.n}
                    with (folder / name / RESULTS_FILE).open("a") as target:
                        target.write(json.dumps({**line, "replicates": its.replicates.tolist()}) + "\n")
                bar.update()
    table = format_table(found, counts, sizes, FLAGS.draws)
    (folder / TABLE_FILE).write_text(table)
    print(
        f"means of {FLAGS.draws} draws, 95% intervals over held-out patients\n\n{table}\nwritten: {folder / TABLE_FILE}"
    )


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("pretrained", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_list("labels", None, "Names of tasks and their files of labels: NAME=FILE,NAME=FILE.", required=True)
    flags.DEFINE_list("sizes", ["16", "64", "256"], "Numbers of labelled patients, or all.")
    flags.DEFINE_integer("draws", 3, "Samples of patients of each size.", lower_bound=1)
    flags.DEFINE_integer("most_labels", 4, "Labels of each outcome that are taken of a patient.", lower_bound=1)
    flags.DEFINE_bool("probe_first", True, "Whether heads begin at a regression on embeddings too.")
    flags.DEFINE_string("workdir", "runs/few-labels", "Where results are kept.")
    config_flags.DEFINE_config_dict("config", recipe())
    command.keep_memory()
    command.run(main)
