"""Compares full fine-tuning, LoRA and a frozen encoder: metrics, trained parameters and step time.

python -m experiments.studies.adaptations --labels=FILE --pretrained=WORKDIR
    [--config=configs/survival.py] [--workdir=DIR]

Each is run with each of `--learning_rates`; the table has the run with the lowest tuning loss. Finished runs are not
repeated.
"""

import json
import statistics
from pathlib import Path

from absl import flags

from behrt_jax.evaluation.tables import COLUMNS, format_cell
from behrt_jax.training.workdir import PARAMETERS_FILE, TUNING_LOSS
from experiments import _cli
from experiments.studies import sweep

VARIANTS = {
    "full": {},
    "LoRA, rank 8": {"lora.rank": 8},
    "LoRA, rank 2": {"lora.rank": 2, "lora.alpha": 2.0},
    "frozen encoder": {"freeze": "encoder"},
}


def make_run(folder: Path, name: str, rate: str) -> sweep.Run:
    """Returns the run of a variant at a learning rate."""
    workdir = folder / f"{name.replace(', rank ', '-').replace(' ', '-').lower()}-{rate}"
    keys = {"labels": FLAGS.labels, "pretrained": FLAGS.pretrained, "optimizer.learning_rate": rate}
    options = [f"--config.{each}" for each in FLAGS.set]
    return sweep.training("finetune", FLAGS.config, workdir, {**keys, **VARIANTS[name]}, *options)


def read_run(workdir: Path, rate: str) -> dict:
    """Reads the values of a run for the table."""
    losses = [line[TUNING_LOSS] for line in sweep.read_metrics(workdir, "tuning") if line[TUNING_LOSS] is not None]
    speeds = [line["tokens_per_second"] for line in sweep.read_metrics(workdir, "train")]
    num_trained = json.loads((workdir / PARAMETERS_FILE).read_text())["trained"]
    values = {"loss": min(losses), "speed": statistics.median(speeds), "trained": num_trained}
    metrics = sweep.read_evaluation(workdir)["metrics"]
    return {**values, "metrics": metrics, "rate": rate, "evaluations": losses.index(min(losses)) + 1}


def format_markdown(found: dict[str, dict]) -> str:
    """Formats the table in Markdown; step times are relative to full fine-tuning."""
    metrics = next(iter(found.values()))["metrics"]
    labels = {f"{part}/{name}": label for part, columns in COLUMNS.items() for name, label in columns.items()}
    columns = {name: label for name, label in labels.items() if name in metrics}
    heads = ["", "trained parameters", "learning rate", "time of a step", "best evaluation", "tuning loss"]
    rows = []
    for name, each in found.items():
        time = found["full"]["speed"] / each["speed"]
        cells = [f"{each['trained']:,}", each["rate"], f"{time:.2f}", str(each["evaluations"]), f"{each['loss']:.4f}"]
        rows.append([name, *cells, *(format_cell(each["metrics"][column]) for column in columns)])
    return sweep.format_table([*heads, *columns.values()], rows)


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    runs = {(name, rate): make_run(folder, name, rate) for name in VARIANTS for rate in FLAGS.learning_rates}
    sweep.run_all({f"{name}, learning rate {rate}": run for (name, rate), run in runs.items()}, FLAGS.jobs)
    best = {}
    for name in VARIANTS:
        results = [read_run(runs[name, rate].workdir, rate) for rate in FLAGS.learning_rates]
        best[name] = min(results, key=lambda each: each["loss"])
    table = format_markdown(best)
    (folder / "adaptations.md").write_text(table)
    print(f"held out, 95% intervals over patients; the learning rate is chosen on tuning\n\n{table}")
    print(f"written: {folder / 'adaptations.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("labels", None, "A file of labels.", required=True)
    flags.DEFINE_string("pretrained", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_string("config", "configs/survival.py", "The recipe of fine-tuning.")
    flags.DEFINE_list("learning_rates", ["0.001", "0.003"], "Learning rates to choose from.")
    flags.DEFINE_multi_string("set", [], "KEY=VALUE for the recipe, such as train.batch_size=16; may be repeated.")
    sweep.define_flags("runs/adaptations")
    _cli.run(main)
