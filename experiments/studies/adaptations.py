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
from behrt_jax.training import metrics_writer, workdir
from behrt_jax.training.workdir import EVALUATION_FILE, PARAMETERS_FILE
from experiments import _cli
from experiments.studies.results import call

VARIANTS = {
    "full": [],
    "LoRA, rank 8": ["--config.lora.rank=8"],
    "LoRA, rank 2": ["--config.lora.rank=2"],
    "frozen encoder": ["--config.freeze=encoder"],
}
ALL_STEPS = 2**62


def run_variant(folder: Path, name: str, rate: str) -> dict:
    """Fine-tunes one variant at one learning rate; returns the values for the table."""
    run_folder = folder / f"{name.replace(', rank ', '-').replace(' ', '-').lower()}-{rate}"
    keys = {"labels": FLAGS.labels, "pretrained": FLAGS.pretrained, "optimizer.learning_rate": rate}
    overrides = [f"--config.{key}={value}" for key, value in keys.items()] + [f"--config.{each}" for each in FLAGS.set]
    call(
        "finetune", f"--config={FLAGS.config}", f"--workdir={run_folder}", "--nobaselines", *overrides, *VARIANTS[name]
    )
    losses = metrics_writer.read_series(run_folder, "tuning", workdir.TUNING_LOSS, ALL_STEPS)
    speeds = metrics_writer.read_series(run_folder, "train", "tokens_per_second", ALL_STEPS)
    result = json.loads((run_folder / EVALUATION_FILE).read_text())["metrics"]
    num_trained = json.loads((run_folder / PARAMETERS_FILE).read_text())["trained"]
    values = {"loss": min(losses), "speed": statistics.median(speeds), "trained": num_trained}
    return {**values, "metrics": result, "rate": rate, "evaluations": losses.index(min(losses)) + 1}


def format_markdown(found: dict[str, dict]) -> str:
    """Formats the table in Markdown; step times are relative to full fine-tuning."""
    metrics = next(iter(found.values()))["metrics"]
    labels = {f"{part}/{name}": label for part, columns in COLUMNS.items() for name, label in columns.items()}
    columns = {name: label for name, label in labels.items() if name in metrics}
    heads = ["", "trained parameters", "learning rate", "time of a step", "best evaluation", "tuning loss"]
    lines = ["| " + " | ".join([*heads, *columns.values()]) + " |", "|---" * (len(heads) + len(columns)) + "|"]
    for name, each in found.items():
        time = found["full"]["speed"] / each["speed"]
        cells = [f"{each['trained']:,}", each["rate"], f"{time:.2f}", str(each["evaluations"]), f"{each['loss']:.4f}"]
        cells += [format_cell(each["metrics"][column]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    best = {}
    for name in VARIANTS:
        runs = [run_variant(folder, name, rate) for rate in FLAGS.learning_rates]
        best[name] = min(runs, key=lambda each: each["loss"])
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
    flags.DEFINE_string("workdir", "runs/adaptations", "Where the runs are made.")
    _cli.run(main)
