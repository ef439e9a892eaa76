"""Results table of the README: one recipe on several populations, compared with baselines and the LSTM.

python -m experiments.studies.results --populations=bundled,simulated,mimic=DIR [--config=...] [--workdir=...]

`bundled` is the data in the repository, `simulated` is written by experiments.simulate (10,000 patients, seed 0), any
other NAME=DIR is a MEDS data set. Finished runs and evaluations are not repeated.
"""

from pathlib import Path

from absl import flags

from behrt_jax.evaluation.tables import COLUMNS, LOWER_IS_BETTER, format_cell
from experiments import _cli
from experiments.studies import sweep

LSTM = "configs/lstm.py"
SIMULATED_PATIENTS = 10_000
OVERRIDES = {
    # Deaths are left out because the oracle does not see them; with so many patients no model overfits.
    "simulated": {"data.codes_exclude": "('MEDS_BIRTH','MEDS_DEATH')", "model.dropout": 0.0},
    "mimic": {"train.num_steps": 600, "train.evaluate_every": 50, "train.patience": 4},
}


def find_data(folder: Path, population: str) -> tuple[str, dict]:
    """Returns the name of a population and the overrides of its recipes; `simulated` is written first if missing."""
    name, _, path = population.partition("=")
    if name == "simulated" and not path:
        path = str(folder / "simulated-data")
        if not Path(path).exists():
            arguments = (f"--patients={SIMULATED_PATIENTS}", f"--output={path}")
            sweep.run_all({"simulation": sweep.Run("simulate", Path(path), arguments)})
    if not path and name != "bundled":
        raise ValueError(f"--populations: found {population}; expected bundled, simulated or NAME=DIR")
    return name, OVERRIDES.get(name, {}) | ({"data.path": path} if path else {})


def run_populations(folder: Path, populations: dict[str, dict], config: str, jobs: int) -> dict[str, dict]:
    """Trains and evaluates on each population, unless already done; returns the evaluations by name.

    Args:
      folder: where the runs are made.
      populations: the overrides of each population's recipes, by name.
      config: file of the recipe.
      jobs: number of runs at a time.
    """
    runs = {}
    for name, overrides in populations.items():
        runs[f"{name}, LSTM"] = sweep.training("pretrain", LSTM, folder / f"{name}-lstm", overrides)
        runs[name] = sweep.training("pretrain", config, folder / name, overrides)
    sweep.run_all(runs, jobs)
    comparisons, results = {}, {}
    for name in populations:
        options = (f"--workdir={folder / name}", f"--compare_to={folder / name}-lstm")
        if str(folder / f"{name}-lstm") not in sweep.read_evaluation(folder / name)["baselines"]:
            comparisons[f"{name}, evaluation"] = sweep.Run("evaluate", folder / name, options)
    sweep.run_all(comparisons, jobs)
    for name in populations:
        results[name] = sweep.read_evaluation(folder / name)
        baselines = results[name]["baselines"]
        baselines["LSTM"] = baselines.pop(str(folder / f"{name}-lstm"))
    return results


def format_markdown(results: dict[str, dict]) -> str:
    """Formats each objective as a table in Markdown: the oracle, the run, and baselines from best to worst."""
    parts = []
    for objective, labels in COLUMNS.items():
        columns = {f"{objective}/{name}": label for name, label in labels.items()}
        first = next(iter(columns))
        if not any(first in result["metrics"] for result in results.values()):
            continue
        rows = []
        for name, result in results.items():
            if first not in result["metrics"]:
                continue
            baselines = {label: metrics for label, metrics in result["baselines"].items() if first in metrics}
            sign = 1 if first.endswith(LOWER_IS_BETTER) else -1
            ranked = sorted(baselines.items(), key=lambda item: sign * item[1][first]["value"])
            oracle = [("oracle", result["oracle"])] if first in result.get("oracle", {}) else []
            for label, metrics in [*oracle, ("**BEHRT**", result["metrics"]), *ranked]:
                cells = [format_cell(metrics[column]) if column in metrics else "" for column in columns]
                rows.append([f"{name}: {label}", *cells])
        parts.append(sweep.format_table([objective, *columns.values()], rows))
    return "\n".join(parts)


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    populations = dict(find_data(folder, population) for population in FLAGS.populations)
    table = format_markdown(run_populations(folder, populations, FLAGS.config, FLAGS.jobs))
    (folder / "results.md").write_text(table)
    print(table)
    print(f"written: {folder / 'results.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("config", "configs/joint.py", "The recipe.")
    flags.DEFINE_list("populations", ["bundled", "simulated"], "bundled, simulated, or NAME=DIR of a MEDS data set.")
    sweep.define_flags("runs/results")
    _cli.run(main)
