"""Compares predictions learned from k labelled patients: with a pre-trained encoder, and with simpler models.

python -m experiments.studies.few_labels --pretrained=RUN[,RUN...] --labels=NAME=FILE,NAME=FILE,... [--sizes=16,64,256]
    [--draws=10] [--max_labels_per_patient=4] [--trained=scratch]
    [--trained_draws=3] [--workdir=DIR] [--config.KEY=VALUE ...]

For each task, size k and draw, k patients of train have labels, and all choices are made within them. All of held_out
are scored. Several runs, such as the folds of experiments.studies.cross_validate, are each compared on their own
held-out patients. The same command resumes where it stopped; sizes, draws, tasks and runs may be added later.
"""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from behrt_jax.data import dataset
from behrt_jax.probing import few_label_task
from behrt_jax.probing.arms import BOOSTING_FROM, FITTED
from behrt_jax.probing.features import Reader
from behrt_jax.probing.measurements import ResultsFile, measure_task
from behrt_jax.probing.probe import read_sizes
from behrt_jax.probing.table import BOOSTING, SCRATCH, TUNED, count, format_table
from behrt_jax.training import config_file, workdir
from configs import default
from experiments import _cli

TABLE_FILE = "few_labels.md"
FEATURES_FOLDER = "features"


def recipe() -> ConfigDict:
    """Returns one config with the recipes of classification and survival; each task uses its own part."""
    config = default.get_finetune_config("classification")
    with config.unlocked():
        config.survival = default.get_finetune_config("survival").survival
        config.train.update(num_steps=100, batch_size=4)
    return config


def of_run(config: ConfigDict, run: str, several: bool) -> ConfigDict:
    """Returns the recipe for a pre-trained run; if there are several, with the run's own training data."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.pretrained = run
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


def main() -> None:
    """Runs the command."""
    folder, sizes, runs = Path(FLAGS.workdir), read_sizes(FLAGS.sizes), FLAGS.pretrained
    files = dict(read_pairs("labels", FLAGS.labels))
    if unknown := {*FLAGS.trained} - {SCRATCH, TUNED}:
        raise ValueError(f"--trained: found {', '.join(sorted(unknown))}; expected {SCRATCH}, {TUNED} or nothing")
    todo, estimates, held_out = planned(sizes), {name: [] for name in files}, {name: [] for name in files}
    with tqdm(total=len(runs) * len(files) * len(todo), unit="fit", mininterval=1) as bar:
        for number, run in enumerate(runs):
            compiled, reader = {}, None
            for name, file in files.items():
                config = of_run(FLAGS.config, run, len(runs) > 1)
                bar.write(f"{run}, {name}:")
                task_folder = folder / f"run-{number}" / name if len(runs) > 1 else folder / name
                task = few_label_task.read_task(config.to_dict(), file, FLAGS.max_labels_per_patient, task_folder)
                patients = dataset.read(task.prepared.folder, "train")
                reader = reader or Reader(
                    workdir.load_pretraining(run, f"--pretrained={run}"), patients, folder / FEATURES_FOLDER
                )
                results = ResultsFile(task_folder)
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
    flags.DEFINE_list("sizes", ["16", "64", "256"], "Numbers of labelled patients, or all.")
    flags.DEFINE_integer("draws", 10, "Samples of patients of each size.", lower_bound=1)
    flags.DEFINE_integer("max_labels_per_patient", 4, "Labels of each outcome and patient.", lower_bound=1)
    flags.DEFINE_alias("most_labels", "max_labels_per_patient")
    flags.DEFINE_list("trained", [SCRATCH], f"Networks trained end to end: {SCRATCH}, {TUNED}; may be empty.")
    flags.DEFINE_integer("trained_draws", 3, "Draws of these, which take longest.", lower_bound=1)
    flags.DEFINE_string("workdir", "runs/few-labels", "Where results are kept.")
    config_flags.DEFINE_config_dict("config", recipe())
    _cli.run(main)
