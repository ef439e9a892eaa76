"""Ablations: changes one choice of a recipe at a time, and tabulates the effect on tuning metrics.

python -m experiments.studies.ablations [--group=model|training] [--workdir=runs/ablations] [--jobs=2]

`model` varies the encoder of configs/small.py, `training` the objectives and the optimizer of configs/joint.py.

A run that is already in the workdir's results.jsonl is not repeated.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from absl import flags
from tqdm import tqdm

from experiments import _cli
from experiments.studies.variants import GROUPS, POOLINGS

METRICS = {"accuracy": "masked-code accuracy", "next_visit": "next-visit average precision"}


def run_all(folder: Path, pending: list[tuple[str, int]], num_steps: int, jobs: int) -> None:
    """Executes runs in separate processes, `jobs` at a time, each on its share of the cores."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = [cores[job::jobs] for job in range(jobs)]

    def make(run: tuple[str, int]) -> str | None:
        share = shares.pop()
        command = ["-m", "experiments.studies.ablations_run", f"--variant={run[0]}", f"--seed={run[1]}"]
        command.append(f"--num_steps={num_steps}")
        bind = (lambda: os.sched_setaffinity(0, share)) if share else None
        process = subprocess.run([sys.executable, *command], stdout=subprocess.PIPE, text=True, preexec_fn=bind)
        shares.append(share)
        if process.returncode:
            return f"{run[0]}, seed {run[1]}"
        with (folder / "results.jsonl").open("a") as file:
            file.write(process.stdout.splitlines()[-1] + "\n")
        return None

    with ThreadPoolExecutor(jobs) as pool:
        outcomes = list(tqdm(pool.map(make, pending), total=len(pending), unit="run", dynamic_ncols=True))
    failures = [run for run in outcomes if run]
    if failures:
        raise ValueError(f"{len(failures)} runs failed, their own errors are above: {'; '.join(failures)}")


def read_results(folder: Path, num_steps: int) -> dict[tuple[str, int], dict]:
    """Reads the results of the runs with `num_steps` steps, by variant and seed."""
    file = folder / "results.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {(line["variant"], line["seed"]): line for line in lines if line["num_steps"] == num_steps}


def format_tables(results: dict[tuple[str, int], dict], num_steps: int, group: str = "model") -> str:
    """Formats means and ranges over seeds: a table of the variants, and one of poolings in the recipe's model."""
    seeds = sorted({seed for name, seed in results if name in GROUPS[group]})
    head = [f"{len(seeds)} seeds, {num_steps} steps: mean [lowest, highest]", ""]
    lines = [*head, "| | parameters | " + " | ".join(METRICS.values()) + " |", "|---|---|" + "---|" * len(METRICS)]
    for name in GROUPS[group]:
        runs = [results[name, seed] for seed in seeds if (name, seed) in results]
        if runs:
            cells = [_cell([run[metric] for run in runs if metric in run]) for metric in METRICS]
            label = name if len(runs) == len(seeds) else f"{name} ({len(runs)} seeds)"
            lines.append(f"| {label} | {runs[0]['parameters']:,} | {' | '.join(cells)} |")
    if group != "model":
        return "\n".join(lines) + "\n"
    base = [results["small recipe", seed] for seed in seeds if ("small recipe", seed) in results]
    lines += ["", "| pooling of the small recipe's states | next-visit average precision |", "|---|---|"]
    lines += [f"| {name} | {_cell([run['poolings'][name] for run in base])} |" for name in POOLINGS if base]
    return "\n".join(lines) + "\n"


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{sum(values) / len(values):.3f} [{min(values):.3f}, {max(values):.3f}]"


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    results = read_results(folder, FLAGS.num_steps)
    runs = [(name, seed) for seed in range(FLAGS.seeds) for name in GROUPS[FLAGS.group]]
    run_all(folder, [run for run in runs if run not in results], FLAGS.num_steps, FLAGS.jobs)
    tables = format_tables(read_results(folder, FLAGS.num_steps), FLAGS.num_steps, FLAGS.group)
    file = folder / f"{FLAGS.group}.md"
    file.write_text(tables)
    print(tables)
    print(f"written: {file}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_enum("group", "model", list(GROUPS), "Which choices to vary.")
    flags.DEFINE_string("workdir", "runs/ablations", "Where results are collected.")
    flags.DEFINE_integer("seeds", 3, "Runs of each variant.", lower_bound=1)
    flags.DEFINE_integer("num_steps", 600, "Updates of a run; 600 take about three minutes on one core.", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the cores.", lower_bound=1)
    _cli.run(main)
