"""Compares predictions learned from k labelled patients: with a pre-trained encoder, and with simpler models.

python -m experiments.studies.few_labels --pretrained=RUN[,RUN...] --labels=NAME=FILE,NAME=FILE,... [--sizes=16,64,256]
    [--forecast=NAME=CODE,NAME=CODE,...] [--draws=10] [--most_labels=4] [--trained=scratch] [--trained_draws=3]
    [--workdir=DIR] [--config.KEY=VALUE ...]

For each task, size k and draw, k patients of train have labels, and all choices are made within them. All of held_out
are scored. Several runs, such as the folds of experiments.studies.cross_validate, are each compared on their own
held-out patients. The same command resumes where it stopped; sizes, draws, tasks and runs may be added later.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from behrt_jax.data import dataset
from behrt_jax.finetuning import sampling
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.probing import arms
from behrt_jax.probing import features as probing_features
from behrt_jax.probing.arms import BOOSTING_FROM, FITTED
from behrt_jax.probing.features import Reader
from behrt_jax.probing.probe import read_sizes
from behrt_jax.probing.scores import rank
from behrt_jax.probing.table import AGE, BOOSTING, FORECAST, SCRATCH, TUNED, count, format_table, show
from behrt_jax.training import config_file, workdir
from configs import default
from experiments import _cli
from experiments.studies import few_labels_run

RESULTS_FILE = "results.jsonl"
TABLE_FILE = "few_labels.md"
FEATURES_FOLDER = "features"


def recipe() -> ConfigDict:
    """Returns one config with the recipes of classification and survival; each task uses its own part."""
    config = default.get_finetune_config("classification")
    with config.unlocked():
        config.survival = default.get_finetune_config("survival").survival
        config.train.update(num_steps=100, batch_size=4)
    return config


class Results:
    """The measurements of a task: estimates by size, draw and arm, each a line of a file.

    Attributes:
      found: the estimates.
    """

    def __init__(self, folder: Path):
        """Reads earlier measurements; removes a last line that was cut short by a kill."""
        self.file, self.found = folder / RESULTS_FILE, {}
        lines = self.file.read_text().splitlines(keepends=True) if self.file.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            self.file.write_text("".join(lines))
        for line in map(json.loads, lines):
            estimate = Estimate(line["value"], np.array(line["replicates"]), line["n"])
            self.found[line["size"], line["draw"], line["arm"]] = estimate

    def add(self, size: int, draw: int, arm: str, estimate: Estimate) -> None:
        """Adds an estimate, and a line to the file."""
        self.found[size, draw, arm] = estimate
        line = {"size": size, "draw": draw, "arm": arm, "value": estimate.value, "n": estimate.n}
        with self.file.open("a") as target:
            target.write(json.dumps({**line, "replicates": np.round(estimate.replicates, 6).tolist()}) + "\n")


def of_run(config: ConfigDict, run: str, several: bool, forecast: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the recipe for a pre-trained run; if there are several, with the run's own training data."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.pretrained, config.head.forecast_codes = run, forecast
        config.head.features += ("forecast",) if forecast else ()
        config.data.path = config_file.read(Path(run))[0].data.path if several else config.data.path
    return config


def read_pairs(flag: str, words: list[str]) -> list[tuple[str, str]]:
    """Parses NAME=VALUE words."""
    if wrong := [word for word in words if not all(word.partition("="))]:
        raise ValueError(f"--{flag}: found {', '.join(wrong)}; expected NAME=VALUE, separated by commas")
    return [(word.partition("=")[0], word.partition("=")[2]) for word in words]


def planned(sizes: list[int]) -> list[tuple[int, int, str]]:
    """Returns the sizes, draws and arms to measure that need labels."""
    fitted = [(size, draw, arm) for size in sizes for draw in range(FLAGS.draws) for arm in FITTED]
    fitted = [each for each in fitted if each[2] != BOOSTING or each[0] >= BOOSTING_FROM]
    number = min(FLAGS.draws, FLAGS.trained_draws)
    return fitted + [(size, draw, arm) for size in sizes for draw in range(number) for arm in FLAGS.trained]


def measure_task(
    task: few_labels_run.Task, results: Results, todo: list, reader: Reader, compiled: dict, bar: tqdm
) -> None:
    """Measures the missing results of a task: arms without labels first, then those that need labels."""
    train, held_out = task.splits["train"], task.splits["held_out"]
    features = None
    if (0, 0, AGE) not in results.found:
        ages = probing_features.ages(held_out.histories, held_out.labels.prediction_times)
        results.add(0, 0, AGE, rank(ages, held_out.labels))
    if task.recipe.head.forecast_codes and (0, 0, FORECAST) not in results.found:
        results.add(0, 0, FORECAST, rank(few_labels_run.forecast(task), held_out.labels))
    for size, draw, arm in todo:
        bar.set_postfix_str(f"{show(size)} patients, draw {draw}, {arm}")
        if (size, draw, arm) not in results.found:
            rows = sampling.draw_rows(train.labels, size, task.recipe.seed, draw)
            if arm in (SCRATCH, TUNED):
                scores = few_labels_run.train_and_score(task, rows, draw, arm == TUNED, compiled)
            else:
                features = features or [
                    reader.blocks(part.histories, part.labels.prediction_times) for part in (train, held_out)
                ]
                scores = arms.fit_and_score(arm, features[0], features[1], train.labels, rows)
            results.add(size, draw, arm, rank(scores, held_out.labels))
        bar.update()


def main() -> None:
    """Runs the command."""
    folder, sizes, runs = Path(FLAGS.workdir), read_sizes(FLAGS.sizes), FLAGS.pretrained
    files, codes = dict(read_pairs("labels", FLAGS.labels)), read_pairs("forecast", FLAGS.forecast)
    if unknown := {name for name, _ in codes} - files.keys():
        raise ValueError(f"--forecast: found {', '.join(sorted(unknown))}; expected names of --labels")
    if unknown := {*FLAGS.trained} - {SCRATCH, TUNED}:
        raise ValueError(f"--trained: found {', '.join(sorted(unknown))}; expected {SCRATCH}, {TUNED} or nothing")
    todo, estimates, held_out = planned(sizes), {name: [] for name in files}, {name: [] for name in files}
    with tqdm(total=len(runs) * len(files) * len(todo), unit="fit", mininterval=1) as bar:
        for number, run in enumerate(runs):
            compiled, reader = {}, None
            for name, file in files.items():
                config = of_run(FLAGS.config, run, len(runs) > 1, tuple(code for label, code in codes if label == name))
                bar.write(f"{run}, {name}:")
                task_folder = folder / f"run-{number}" / name if len(runs) > 1 else folder / name
                task = few_labels_run.read_task(config, file, FLAGS.most_labels, task_folder, bar.write)
                patients = dataset.read(task.prepared.folder, "train")
                reader = reader or Reader(
                    workdir.load_pretraining(run, f"--pretrained={run}"), patients, folder / FEATURES_FOLDER
                )
                results = Results(task_folder)
                measure_task(task, results, todo, reader, compiled, bar)
                estimates[name].append(results.found)
                held_out[name].append(task.splits["held_out"].labels)
    table = format_table(estimates, {name: count(each) for name, each in held_out.items()}, sizes)
    (folder / TABLE_FILE).write_text(table)
    label = f"{FLAGS.draws} draws" + (f" in each of {len(runs)} runs" if len(runs) > 1 else "")
    print(
        f"means of {label}; 95% intervals over held-out patients and draws\n\n{table}\nwritten: {folder / TABLE_FILE}"
    )


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("pretrained", None, "What experiments.pretrain wrote; of several, means.", required=True)
    flags.DEFINE_list("labels", None, "Names of tasks and their files of labels: NAME=FILE,NAME=FILE.", required=True)
    flags.DEFINE_list("forecast", [], "Codes of the run's own forecast, scored without labels: NAME=CODE,NAME=CODE.")
    flags.DEFINE_list("sizes", ["16", "64", "256"], "Numbers of labelled patients, or all.")
    flags.DEFINE_integer("draws", 10, "Samples of patients of each size.", lower_bound=1)
    flags.DEFINE_integer("most_labels", 4, "Labels of each outcome that are taken of a patient.", lower_bound=1)
    flags.DEFINE_list("trained", [SCRATCH], f"Networks trained end to end: {SCRATCH}, {TUNED}; may be empty.")
    flags.DEFINE_integer("trained_draws", 3, "Draws of these, which take longest.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/few-labels", "Where results are kept.")
    config_flags.DEFINE_config_dict("config", recipe())
    _cli.reexec_with_malloc_settings()
    _cli.run(main)
