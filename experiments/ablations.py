"""Changes one choice of the small recipe at a time, and writes what that does to tuning metrics as a table.

python -m experiments.ablations [--workdir=runs/ablations] [--jobs=2]

A run that is in the workdir's results.jsonl already is not made again.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict
from tqdm import tqdm

from configs import reference, small
from experiments import command

VARIANTS = {
    "small recipe": {},
    "attention: no fall with visit distance": {"model.visit_bias": False},
    "attention: rotary on positions": {"model.rotary": "positions"},
    "attention: not rotary": {"model.rotary": "none"},
    "positions: learned table, not rotary": {"model.rotary": "none", "model.position_encoding": "learned"},
    "positions: sinusoidal, not rotary": {"model.rotary": "none", "model.position_encoding": "sinusoidal"},
    "ages: bins of one year": {"model.age_bin_size": 1.0},
    "ages: Time2Vec": {"model.age_encoding": "time2vec"},
    "ages: sinusoidal": {"model.age_encoding": "sinusoidal"},
    "dates: Time2Vec added": {"model.date_encoding": "time2vec"},
    "days since last visit: logarithmic bins added": {"model.time_bins": 28},
    "days since last visit: 7-day bins to a year added": {"model.time_bins": 53, "model.time_bin_days": 7.0},
    "no [SEP]": {"data.separators": False},
    "20% hidden in training": {"objective.mask_rate": 0.2},
    "15% hidden in training": {"objective.mask_rate": 0.15},
    "reference set (configs/reference.py)": None,
    "encoder: hierarchical": {"model.encoder": "hierarchical"},
    "encoder: LSTM, 1.2 M parameters": {"model.encoder": "lstm", "model.hidden_dim": 256},
}
METRICS = {"accuracy": "masked-code accuracy", "next_visit": "next-visit average precision"}
POOLINGS = ("cls", "mean", "max")


def recipe(name: str, seed: int, num_steps: int) -> ConfigDict:
    """Returns the config of a variant."""
    overrides = VARIANTS[name]
    config = (reference if overrides is None else small).get_config()
    config.update_from_flattened_dict({"seed": seed, "train.num_steps": num_steps, **(overrides or {})})
    return config


def run_all(folder: Path, pending: list[tuple[str, int]], num_steps: int, jobs: int) -> None:
    """Makes runs in processes of their own, `jobs` at a time, each on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = [cores[job::jobs] for job in range(jobs)]

    def make(run: tuple[str, int]) -> str | None:
        share = shares.pop()
        only = [
            "-m",
            "experiments.ablations_run",
            f"--variant={run[0]}",
            f"--seed={run[1]}",
            f"--num_steps={num_steps}",
        ]
        bind = (lambda: os.sched_setaffinity(0, share)) if share else None
        done = subprocess.run([sys.executable, *only], stdout=subprocess.PIPE, text=True, preexec_fn=bind)
        shares.append(share)
        if done.returncode:
            return f"{run[0]}, seed {run[1]}"
        with (folder / "results.jsonl").open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")
        return None

    with ThreadPoolExecutor(jobs) as pool:
        ended = list(tqdm(pool.map(make, pending), total=len(pending), unit="run", dynamic_ncols=True))
    failed = [run for run in ended if run]
    if failed:
        raise ValueError(f"{len(failed)} runs failed, their own errors are above: {'; '.join(failed)}")


def read_results(folder: Path, num_steps: int) -> dict[tuple[str, int], dict]:
    """Reads the results of runs of a length, by variant and seed."""
    file = folder / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(line["variant"], line["seed"]): line for line in lines if line["num_steps"] == num_steps}


def format_tables(results: dict[tuple[str, int], dict], num_steps: int) -> str:
    """Lays out means and ranges over seeds: a table of the variants, and one of poolings in the recipe's model."""
    seeds = sorted({seed for _, seed in results})
    head = [f"{len(seeds)} seeds, {num_steps} steps: mean [lowest, highest]", ""]
    lines = [*head, "| | parameters | " + " | ".join(METRICS.values()) + " |", "|---|---|" + "---|" * len(METRICS)]
    for name in VARIANTS:
        found = [results[name, seed] for seed in seeds if (name, seed) in results]
        if found:
            cells = [_cell([run[metric] for run in found]) for metric in METRICS]
            label = name if len(found) == len(seeds) else f"{name} ({len(found)} seeds)"
            lines.append(f"| {label} | {found[0]['parameters']:,} | {' | '.join(cells)} |")
    base = [results["small recipe", seed] for seed in seeds if ("small recipe", seed) in results]
    lines += ["", "| pooling of the small recipe's states | next-visit average precision |", "|---|---|"]
    lines += [f"| {name} | {_cell([run['poolings'][name] for run in base])} |" for name in POOLINGS if base]
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    known = read_results(folder, FLAGS.num_steps)
    everything = [(name, seed) for seed in range(FLAGS.seeds) for name in VARIANTS]
    run_all(folder, [run for run in everything if run not in known], FLAGS.num_steps, FLAGS.jobs)
    tables = format_tables(read_results(folder, FLAGS.num_steps), FLAGS.num_steps)
    (folder / "ablations.md").write_text(tables)
    print(tables)
    print(f"written: {folder / 'ablations.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", "runs/ablations", "Where results are collected.")
    flags.DEFINE_integer("seeds", 3, "Runs of each variant.", lower_bound=1)
    flags.DEFINE_integer("num_steps", 600, "Updates of a run; 600 take about three minutes on one core.", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the cores.", lower_bound=1)
    command.run(main)
