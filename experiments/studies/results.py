"""Results table of the README: one recipe on several populations, compared with baselines and the LSTM.

python -m experiments.studies.results --populations=bundled,simulated,mimic=DIR [--config=...] [--workdir=...]

`bundled` is the data in the repository, `simulated` is written by experiments.simulate (10,000 patients, seed 0), any
other NAME=DIR is a MEDS data set. Finished runs and evaluations are not repeated.
"""

import json
import shlex
import subprocess
import sys
from pathlib import Path

from absl import flags

from behrt_jax.evaluation.tables import COLUMNS, LOWER_IS_BETTER, format_cell
from experiments import _cli

LSTM = "configs/lstm.py"
SIMULATED_PATIENTS = 10_000
OVERRIDES = {
    # Deaths are left out because the oracle does not see them; with so many patients no model overfits.
    "simulated": ["--config.data.codes_exclude=('MEDS_BIRTH','MEDS_DEATH')", "--config.model.dropout=0.0"],
    "mimic": ["--config.train.num_steps=600", "--config.train.evaluate_every=50", "--config.train.patience=4"],
}


def call(module: str, *arguments: str) -> None:
    """Runs a command of this package and raises a ValueError if it fails."""
    print(f"python -m experiments.{module} {shlex.join(arguments)}", flush=True)
    if status := subprocess.run([sys.executable, "-m", f"experiments.{module}", *arguments]).returncode:
        raise ValueError(f"experiments.{module} failed with status {status}; its error is above")


def run_population(folder: Path, population: str, config: str) -> tuple[str, dict]:
    """Trains and evaluates on one population, unless already done; returns its name and the evaluation."""
    name, _, path = population.partition("=")
    workdir, overrides = folder / name, list(OVERRIDES.get(name, []))
    if name == "simulated" and not path:
        path = str(folder / "simulated-data")
        if not Path(path).exists():
            call("simulate", f"--patients={SIMULATED_PATIENTS}", f"--output={path}")
    if path:
        overrides.append(f"--config.data.path={path}")
    elif name != "bundled":
        raise ValueError(f"--populations: found {population}; expected bundled, simulated or NAME=DIR")
    lstm, file = folder / f"{name}-lstm", workdir / "evaluation.json"
    for recipe, target in ((LSTM, lstm), (config, workdir)):  # does nothing if finished on the same data
        call("pretrain", f"--config={recipe}", f"--workdir={target}", "--nobaselines", *overrides)
    if str(lstm) not in json.loads(file.read_text())["baselines"]:
        call("evaluate", f"--workdir={workdir}", f"--versus={lstm}")
    result = json.loads(file.read_text())
    result["baselines"]["LSTM"] = result["baselines"].pop(str(lstm))
    return name, result


def format_markdown(results: dict[str, dict]) -> str:
    """Formats each objective as a table in Markdown: the oracle, the run, and baselines from best to worst."""
    parts = []
    for objective, labels in COLUMNS.items():
        columns = {f"{objective}/{name}": label for name, label in labels.items()}
        first = next(iter(columns))
        if not any(first in result["metrics"] for result in results.values()):
            continue
        lines = [f"| {objective} | " + " | ".join(columns.values()) + " |", "|---|" + "---|" * len(columns)]
        for name, result in results.items():
            if first not in result["metrics"]:
                continue
            baselines = {label: metrics for label, metrics in result["baselines"].items() if first in metrics}
            sign = 1 if first.endswith(LOWER_IS_BETTER) else -1
            ranked = sorted(baselines.items(), key=lambda item: sign * item[1][first]["value"])
            oracle = [("oracle", result["oracle"])] if first in result.get("oracle", {}) else []
            for label, metrics in [*oracle, ("**BEHRT**", result["metrics"]), *ranked]:
                cells = [format_cell(metrics[column]) if column in metrics else "" for column in columns]
                lines.append(f"| {name}: {label} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    results = dict(run_population(folder, population, FLAGS.config) for population in FLAGS.populations)
    table = format_markdown(results)
    (folder / "results.md").write_text(table)
    print(table)
    print(f"written: {folder / 'results.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("config", "configs/joint.py", "The recipe.")
    flags.DEFINE_list("populations", ["bundled", "simulated"], "bundled, simulated, or NAME=DIR of a MEDS data set.")
    flags.DEFINE_string("workdir", "runs/results", "Where the runs are made.")
    _cli.run(main)
