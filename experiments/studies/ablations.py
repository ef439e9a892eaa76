"""Ablations: changes one choice of a recipe at a time, and tabulates the effect on tuning metrics.

python -m experiments.studies.ablations [--group=model|training] [--workdir=runs/ablations] [--jobs=2]

`model` varies the encoder of configs/small.py, `training` the objectives and the optimizer of configs/joint.py. Each
variant and seed is a run of experiments.pretrain. Finished runs are not repeated.
"""

import re
from pathlib import Path
from typing import Any

from absl import flags

import behrt_jax
from experiments import _cli
from experiments.studies import sweep

RECIPES = {"model": "configs/small.py", "training": "configs/joint.py"}
REFERENCE = "reference set (configs/reference.py)"  # another recipe, not overrides
MASKED = {"mlm/accuracy": "masked-code accuracy", "mlm/loss": "masked-code loss"}
METRICS = {
    "model": MASKED,
    "training": {"mlm/accuracy": "masked-code accuracy", "next_visit/loss": "next-visit loss"},
}
MODEL = {
    "small recipe": {},
    "attention: no fall with visit distance": {"model.visit_bias": False},
    "attention: rotary on positions": {"model.rotary": "positions"},
    "attention: not rotary": {"model.rotary": "none"},
    "positions: learned table, not rotary": {"model.rotary": "none", "model.position_encoding": "learned"},
    "positions: sinusoidal, not rotary": {"model.rotary": "none", "model.position_encoding": "sinusoidal"},
    "ages: bins of one year": {"model.age_bin_size": 1.0},
    "days since last visit: logarithmic bins added": {"model.time_bins": 28},
    "days since last visit: 7-day bins to a year added": {"model.time_bins": 53, "model.time_bin_days": 7.0},
    "no [SEP]": {"data.use_sep": False},
    "20% masked in training": {"objective.mask_rate": 0.2},
    "15% masked in training": {"objective.mask_rate": 0.15},
    REFERENCE: {},
    "encoder: LSTM, 1.2 M parameters": {"model.encoder": "lstm", "model.hidden_dim": 256},
}
TRAINING = {
    "joint recipe": {},
    "learning rate 0.002": {"optimizer.learning_rate": 2e-3},
    "learning rate 0.008": {"optimizer.learning_rate": 8e-3},
    "no dropout": {"model.dropout": 0.0},
    "weight decay 0.1": {"optimizer.weight_decay": 0.1},
    "next visits weigh 0.05": {"objective.next_visit_weight": 0.05},
    "next visits weigh 0.5": {"objective.next_visit_weight": 0.5},
    "rows of 512, half as many": {"data.row_length": 512, "train.batch_size": 4},
    "rows of 128, twice as many": {"data.row_length": 128, "train.batch_size": 16},
    "days to the next visit left out": {"objective.time_gap_weight": 0.0},
    "events ahead too": {"objective.time_to_event_weight": 1.0},
    "masked codes alone": {"objective.name": "mlm"},
    "next visits alone": {"objective.name": "next_visit"},
    "next visits alone, random cut": {"objective.name": "next_visit", "objective.history": "random_cut"},
}
GROUPS = {"model": MODEL, "training": TRAINING}


def make_run(folder: Path, group: str, name: str, seed: int, num_steps: int, extra: list[str]) -> sweep.Run:
    """Returns the run of a variant and a seed, with `extra` KEY=VALUE for its recipe; it is scored at its last step.

    Groups share the runs that they have in common, as the workdir is named by recipe and variant.
    """
    recipe = "configs/reference.py" if name == REFERENCE else RECIPES[group]
    slug = re.sub("[^a-z0-9.]+", "-", f"{Path(recipe).stem}: {name.lower()}").strip("-")
    workdir = folder / f"{slug}-{num_steps}-seed-{seed}"
    steps = {"seed": seed, "train.num_steps": num_steps, "train.evaluate_every": num_steps}
    options = [f"--config.{each}" for each in extra]
    return sweep.training("pretrain", recipe, workdir, {**GROUPS[group][name], **steps}, *options)


def read_run(run: sweep.Run) -> dict[str, Any]:
    """Reads the metrics on tuning after the last step, and counts the parameters."""
    params = behrt_jax.load(run.workdir).params
    return {**sweep.read_metrics(run.workdir, "tuning")[-1], "parameters": behrt_jax.count_parameters(params)}


def format_markdown(results: dict[str, list[dict]], group: str, num_steps: int) -> str:
    """Formats the means and ranges over the seeds of each variant."""
    rows = [
        [
            name,
            f"{runs[0]['parameters']:,}",
            *(sweep.mean_and_range([run[key] for run in runs if key in run]) for key in METRICS[group]),
        ]
        for name, runs in results.items()
    ]
    heads = ["", "parameters", *METRICS[group].values()]
    number = len(next(iter(results.values())))
    return f"{number} seeds, {num_steps} steps: mean [lowest, highest]\n\n{sweep.format_table(heads, rows)}"


def main() -> None:
    """Runs the command."""
    folder, group = Path(FLAGS.workdir), FLAGS.group
    if unknown := sorted({*FLAGS.variants} - GROUPS[group].keys()):
        raise ValueError(f"--variants: found {'; '.join(unknown)}; expected variants of --group={group}")
    runs = {
        (name, seed): make_run(folder, group, name, seed, FLAGS.num_steps, FLAGS.set)
        for seed in range(FLAGS.seeds)
        for name in GROUPS[group]
        if not FLAGS.variants or name in FLAGS.variants
    }
    sweep.run_all({f"{name}, seed {seed}": run for (name, seed), run in runs.items()}, FLAGS.jobs)
    results = {}
    for (name, _), run in runs.items():
        results.setdefault(name, []).append(read_run(run))
    table = format_markdown(results, group, FLAGS.num_steps)
    file = folder / f"{group}.md"
    file.write_text(table)
    print(f"{table}\nwritten: {file}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    sweep.define_flags("runs/ablations")
    flags.DEFINE_enum("group", "model", list(GROUPS), "Which choices to vary.")
    flags.DEFINE_multi_enum("variants", [], [*(MODEL | TRAINING)], "Rows of the table to make; may be repeated.")
    flags.DEFINE_integer("seeds", 3, "Runs of each variant.", lower_bound=1)
    flags.DEFINE_integer("num_steps", 600, "Updates of a run; 600 take about three minutes on one core.", lower_bound=1)
    flags.DEFINE_multi_string("set", [], "KEY=VALUE for all recipes, such as train.batch_size=16; may be repeated.")
    _cli.run(main)
