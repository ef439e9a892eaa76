"""Scaling curves: held-out losses by number of train patients, with a power-law fit.

python -m experiments.studies.scaling --config=configs/small.py --sizes=100,200,400 [--workdir=DIR] [--config.KEY=...]
python -m experiments.studies.scaling --config=configs/medium.py --sizes=... --workdir=DIR2 --compare_to=DIR

Each size is a run of experiments.pretrain in its own folder, made once. A size above the number of train patients is
refused; the fit uses the number of patients that each run was trained on, from its evaluation. `--compare_to` reads the
curve of another recipe and reports how many patients that recipe would need for the losses of this one.
"""

import sys
from pathlib import Path

import numpy as np
from absl import flags
from matplotlib.figure import Figure
from ml_collections import config_flags

from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.evaluation.tables import format_cell
from behrt_jax.metrics.power_law import describe_fit, fit_power_law, patients_for
from behrt_jax.training import config_file
from behrt_jax.training.workdir import EVALUATION_FILE
from experiments import _cli
from experiments.studies import sweep

METRICS = ("mlm/loss", "mlm/accuracy", "next_visit/loss", "next_visit/average_precision", "time_to_event/loss")


def compare(results: dict[int, dict], other: dict[int, dict]) -> str:
    """Reports how many patients the recipe of another curve needs for the losses of this one."""
    lines = []
    shared = set.intersection(*(set(result["metrics"]) for result in (*results.values(), *other.values())))
    for name in (name for name in METRICS if name.endswith("loss") and name in shared):
        fit, _ = fit_power_law(np.array(list(other)), _values(other, name))
        for size, loss in zip(results, _values(results, name), strict=True):
            needed = patients_for(loss, fit)
            worth = f"worth {needed:,.0f} of the other" if np.isfinite(needed) else "below the floor of the other's fit"
            lines.append(f"{name} {loss:.3f} at {size:,} patients: {worth}")
    return "\n".join(lines) + "\n"


def _values(results: dict[int, dict], name: str, key: str = "value") -> np.ndarray:
    return np.array([result["metrics"][name][key] for result in results.values()])


def read_curve(folder: Path) -> dict[int, dict]:
    """Reads the finished runs of a curve by their number of train patients; raises a ValueError if there are none."""
    results = by_patients([read_run(file.parent) for file in sorted(folder.glob(f"[0-9]*/{EVALUATION_FILE}"))])
    if not results:
        raise ValueError(f"--compare_to={folder}: holds no finished run; expected what this command wrote")
    return results


def read_run(folder: Path) -> dict:
    """Reads the evaluation of a run; counts `train_patients`, which older evaluations lack, in its data.

    Raises:
      ValueError: the evaluation is not of the held-out patients of the run's own data.
    """
    result = sweep.read_evaluation(folder)
    if result["split"] != "held_out" or "data" in result:
        raise ValueError(f"{folder / EVALUATION_FILE}: is of other patients than held_out; run experiments.evaluate")
    if "train_patients" not in result:
        recipe, _ = config_file.read(folder)
        everyone = count_train(recipe.data)
        result["train_patients"] = min(recipe.train.max_patients or everyone, everyone)
    return result


def count_train(config: DataConfig) -> int:
    """Counts the train patients in the data of a recipe."""
    return prepare(config).report["patients/train"]


def by_patients(results: list[dict]) -> dict[int, dict]:
    """Returns evaluations by their number of train patients, ascending; keeps the last of equal ones."""
    by_size = {result["train_patients"]: result for result in results}
    if repeated := len(results) - len(by_size):
        print(f"{repeated} runs were trained on as many patients as another and are left out")
    return dict(sorted(by_size.items()))


def read_sizes(words: list[str], available: int) -> list[int]:
    """Parses the sizes; returns them in ascending order, without repeats.

    Raises:
      ValueError: a size is not a number of patients, or exceeds `available`, that of the train patients in the data.
    """
    wrong = [word for word in words if not word.isdecimal() or not int(word)]
    if wrong:
        raise ValueError(f"--sizes: found {', '.join(wrong)}; expected numbers of patients, such as 100,200,400,800")
    sizes = sorted({int(word) for word in words})
    if too_large := [size for size in sizes if size > available]:
        excess = ", ".join(f"{size:,}" for size in too_large)
        raise ValueError(f"--sizes: found {excess}; expected at most {available:,}, the train patients of the data")
    return sizes


def describe(results: dict[int, dict]) -> str:
    """Formats the held-out metrics by size as a table, and the fit of each loss."""
    metrics = [name for name in METRICS if all(name in result["metrics"] for result in results.values())]
    cells = {size: [format_cell(each["metrics"][name]) for name in metrics] for size, each in results.items()}
    text = sweep.format_table(["train patients", *metrics], [[f"{size:,}", *row] for size, row in cells.items()])
    for name in [name for name in metrics if name.endswith("loss")] if len(results) > 3 else ():
        text += f"\n{describe_fit(name, np.array(list(results)), _values(results, name))}\n"
    return text


def draw(results: dict[int, dict], file: Path) -> None:
    """Draws each loss with its interval against the number of patients."""
    names = [name for name in next(iter(results.values()))["metrics"] if name in METRICS and name.endswith("loss")]
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        low, middle, high = (_values(results, name, key) for key in ("low", "value", "high"))
        axes.errorbar(list(results), middle, yerr=[middle - low, high - middle], marker="o", capsize=3)
        axes.set(xscale="log", xlabel="train patients", ylabel="held-out loss (nats)", title=name)
    figure.savefig(file, dpi=150)


def main() -> None:
    """Runs the command."""
    sizes = read_sizes(FLAGS.sizes, count_train(DataConfig(**FLAGS.config.data)))
    folder = Path(FLAGS.workdir)
    given = [word for word in sys.argv[1:] if word.startswith("--config.")]
    command = ("pretrain", FLAGS["config"].config_filename)  # pyright: ignore
    runs = {size: sweep.training(*command, folder / str(size), {"train.max_patients": size}, *given) for size in sizes}
    sweep.run_all({f"{size:,} patients": run for size, run in runs.items()}, FLAGS.jobs)
    results = by_patients([read_run(run.workdir) for run in runs.values()])
    table = describe(results)
    if FLAGS.compare_to:
        table += "\n" + compare(results, read_curve(Path(FLAGS.compare_to)))
    (folder / "scaling.md").write_text(table)
    draw(results, folder / "scaling.png")
    print(f"{table}\nwritten: {folder / 'scaling.md'}, {folder / 'scaling.png'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    sweep.define_flags("runs/scaling")
    flags.DEFINE_list("sizes", None, "Numbers of train patients, separated by commas.", required=True)
    flags.DEFINE_string("compare_to", None, "The workdir of the curve of another recipe.")
    flags.DEFINE_alias("versus", "compare_to")
    config_flags.DEFINE_config_file("config", None, "The recipe; all its flags are passed on.", lock_config=True)
    flags.mark_flag_as_required("config")
    _cli.run(main)
