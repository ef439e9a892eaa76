"""Compares pre-trained with from scratch where few patients are labelled: both are fine-tuned by the same recipe.

python -m experiments.few_labels --pretrained=RUN[,RUN...] --labels=NAME=FILE,NAME=FILE,... [--sizes=16,64,256]
    [--foretold=NAME=CODE,NAME=CODE,...] [--draws=3] [--most_labels=4] [--noprobe_first] [--workdir=DIR]
    [--config.KEY=VALUE ...]

For each task, size k and draw, k patients of train have labels to fit, and k of tuning for early stopping; all of
held_out are scored. From scratch has the data and model keys and the vocabulary of the pre-trained run, so that only
weights differ. Several runs, as of the folds of experiments.cross_validate, are each held against their own held-out
patients. The same command goes on where it was stopped; sizes, draws, tasks and runs may be added later.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from behrt_jax import workdir
from behrt_jax.metrics import Estimate
from configs import default
from experiments import command, few_labels_run
from experiments.few_labels_table import ARMS, FORETOLD, count, format_table, show
from experiments.probe import read_sizes

RESULTS_FILE = "results.jsonl"
TABLE_FILE = "few_labels.md"


def recipe() -> ConfigDict:
    """Returns the recipes of classification and survival in one, of which each task takes its own."""
    config = default.get_finetune_config("classification")
    with config.unlocked():
        config.survival = default.get_finetune_config("survival").survival
        config.train.update(num_steps=40, evaluate_every=20)
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


def keep(folder: Path, results: dict, run: tuple[int, int, str], its: Estimate) -> None:
    """Adds what a run reached to the others, and to the file that `read_results` reads."""
    results[run] = its
    size, draw, arm = run
    line = {"size": size, "draw": draw, "arm": arm, "value": its.value, "n": its.n}
    with (folder / RESULTS_FILE).open("a") as target:
        target.write(json.dumps({**line, "replicates": its.replicates.tolist()}) + "\n")


def of_run(config: ConfigDict, run: str, several: bool, foretold: tuple[str, ...] = ()) -> ConfigDict:
    """Returns the recipe of a pre-trained run; of several, each has the data that it was trained on."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.pretrained, config.foretold.codes = run, foretold
        config.data.path = workdir.read_config(Path(run)).data.path if several else config.data.path
    return config


def read_pairs(flag: str, words: list[str]) -> list[tuple[str, str]]:
    """Reads NAME=VALUE words."""
    if wrong := [word for word in words if not all(word.partition("="))]:
        raise ValueError(f"--{flag}: found {', '.join(wrong)}; expected NAME=VALUE, separated by commas")
    return [(word.partition("=")[0], word.partition("=")[2]) for word in words]


def main() -> None:
    """Runs the command."""
    folder, sizes, pretrained = Path(FLAGS.workdir), read_sizes(FLAGS.sizes), FLAGS.pretrained
    files, codes = dict(read_pairs("labels", FLAGS.labels)), read_pairs("foretold", FLAGS.foretold)
    if unknown := {name for name, _ in codes} - files.keys():
        raise ValueError(f"--foretold: found {', '.join(sorted(unknown))}; expected names of --labels")
    runs = [(size, draw, arm) for size in sizes for draw in range(FLAGS.draws) for arm in ARMS]
    found, held_out = {name: [] for name in files}, {name: [] for name in files}
    with tqdm(total=len(pretrained) * len(files) * len(runs), unit="run", mininterval=1) as bar:
        for number, run in enumerate(pretrained):
            compiled = {}
            for name, file in files.items():
                own_codes = tuple(code for of, code in codes if of == name)
                config = of_run(FLAGS.config, run, len(pretrained) > 1, own_codes)
                bar.write(f"{run}, {name}:")
                own = folder / f"run-{number}" / name if len(pretrained) > 1 else folder / name
                task = few_labels_run.read_task(config, file, FLAGS.most_labels, FLAGS.probe_first, own, bar.write)
                found[name].append(results := read_results(own))
                held_out[name].append(task.splits["held_out"])
                if own_codes and FORETOLD not in results:
                    keep(own, results, FORETOLD, few_labels_run.foretell(task))
                for size, draw, arm in runs:
                    bar.set_postfix_str(f"{name}, {show(size)} patients, draw {draw}, {arm}")
                    if (size, draw, arm) not in results:
                        its = few_labels_run.run(task, size, draw, arm == "pretrained", compiled)
                        keep(own, results, (size, draw, arm), its)
                    bar.update()
    counts = {name: count(each) for name, each in held_out.items()}
    table = format_table(found, counts, sizes, FLAGS.draws)
    (folder / TABLE_FILE).write_text(table)
    of = f"{FLAGS.draws} draws" + (f" in each of {len(pretrained)} runs" if len(pretrained) > 1 else "")
    print(f"means of {of}, 95% intervals over held-out patients\n\n{table}\nwritten: {folder / TABLE_FILE}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("pretrained", None, "What experiments.pretrain wrote; of several, means.", required=True)
    flags.DEFINE_list("labels", None, "Names of tasks and their files of labels: NAME=FILE,NAME=FILE.", required=True)
    flags.DEFINE_list("foretold", [], "Codes that heads read from the run's own forecast: NAME=CODE,NAME=CODE.")
    flags.DEFINE_list("sizes", ["16", "64", "256"], "Numbers of labelled patients, or all.")
    flags.DEFINE_integer("draws", 3, "Samples of patients of each size.", lower_bound=1)
    flags.DEFINE_integer("most_labels", 4, "Labels of each outcome that are taken of a patient.", lower_bound=1)
    flags.DEFINE_bool("probe_first", True, "Whether heads begin at a regression on embeddings too.")
    flags.DEFINE_string("workdir", "runs/few-labels", "Where results are kept.")
    config_flags.DEFINE_config_dict("config", recipe())
    command.keep_memory()
    command.run(main)
