"""Cross-validates the outcome baselines alone, without BEHRT, on the folds of cross_validate.

python -m experiments.studies.cross_validate_baselines --labels=FILE [--config=configs/survival.py] [--data=DIR]
    [--workdir=DIR] [--compare_to=DIR]

`--compare_to` names the workdir of another such run, for example of an older version, and adds the paired differences
to it. Baselines that read a pre-trained run's embeddings are not included.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import config_flags

from behrt_jax.evaluation.outcome_baselines import fit_baselines
from behrt_jax.evaluation.outcomes import measure
from behrt_jax.evaluation.tables import COLUMNS, format_cell, format_signed
from behrt_jax.finetuning import data, setup
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.training.recipe import with_facts
from experiments import _cli
from experiments.studies.cross_validate import average, write_view

REPLICATES_FILE, VALUES_FILE = "replicates.npz", "values.json"


def measure_fold(config, fold: int, say) -> dict[str, dict[str, Estimate]]:
    """Fits and measures the baselines of a fold; permutes resamples so that folds are independent of each other."""
    recipe = setup.read(config)
    prepared, splits = data.read_splits(recipe, None, say)
    facts = setup.find_facts(recipe, splits["train"].labels, len(prepared.vocabulary))
    recipe, (train, held_out) = with_facts(recipe, facts), (splits[name].labels for name in ("train", "held_out"))
    order, result = np.random.default_rng(fold).permutation(bootstrap.NUM_RESAMPLES), {}
    for name, (predictions, threshold) in fit_baselines(recipe, splits, prepared.vocabulary.tokens, say).items():
        estimates = measure(predictions, threshold, held_out, train, facts.names, recipe.evaluation.horizons, {})
        result[name] = {key: each._replace(replicates=each.replicates[order]) for key, each in estimates.items()}
    return result


def read(folder: Path) -> dict[str, dict[str, Estimate]]:
    """Reads the estimates written by a run of this command."""
    values, estimates = json.loads((folder / VALUES_FILE).read_text()), {}
    with np.load(folder / REPLICATES_FILE) as arrays:
        for key, (value, number) in values.items():
            model, _, metric = key.partition(": ")
            estimates.setdefault(model, {})[metric] = Estimate(value, arrays[key], number)
    return estimates


def write(folder: Path, found: dict[str, dict[str, Estimate]]) -> None:
    """Writes estimates and their resamples."""
    flat = {f"{model}: {metric}": each for model, metrics in found.items() for metric, each in metrics.items()}
    (folder / VALUES_FILE).write_text(json.dumps({key: (each.value, each.n) for key, each in flat.items()}, indent=1))
    resampled = {key: each.replicates for key, each in flat.items()}
    np.savez_compressed(folder / REPLICATES_FILE, allow_pickle=False, **resampled)


def format_markdown(found: dict[str, dict[str, Estimate]], other: dict[str, dict[str, Estimate]]) -> str:
    """Formats a table in Markdown: a row per baseline, and its difference from the same baseline of another run."""
    objective = next(iter(next(iter(found.values())))).partition("/")[0]
    names = {f"{objective}/{name}": label for name, label in COLUMNS[objective].items()}
    columns = {name: label for name, label in names.items() if all(name in estimates for estimates in found.values())}
    first = next(iter(columns))
    heads = ["", *columns.values(), *([f"{columns[first]}: difference"] if other else [])]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for model, estimates in found.items():
        cells = [format_cell(estimates[name].summary()) for name in columns]
        if other:
            gap = bootstrap.difference(estimates[first], other[model][first]) if model in other else None
            cells.append(format_signed(gap) if gap else "")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the command."""
    folder, fold_estimates = Path(FLAGS.workdir), []
    other = read(Path(FLAGS.compare_to)) if FLAGS.compare_to else {}
    for fold in range(FLAGS.folds):
        config = FLAGS.config.copy_and_resolve_references()
        view = write_view(Path(FLAGS.data), folder / f"fold-{fold}", fold, FLAGS.folds)
        with config.unlocked():
            config.labels, config.data.path = FLAGS.labels, str(view)
        print(f"fold {fold} of {FLAGS.folds}: {view}", flush=True)
        fold_estimates.append(measure_fold(config, fold, lambda line: print(line, flush=True)))
    means = average(fold_estimates)
    write(folder, means)
    (folder / "baselines.md").write_text(table := format_markdown(means, other))
    print(f"means of {FLAGS.folds} folds, 95% intervals over patients\n\n{table}")
    print(f"written: {folder / 'baselines.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    config_flags.DEFINE_config_file("config", "configs/survival.py", "The recipe of fine-tuning.")
    flags.DEFINE_string("labels", None, "A file of labels.", required=True)
    flags.DEFINE_string("data", "data/synthea-1151", "A MEDS data set.")
    flags.DEFINE_integer("folds", 5, "Parts of the patients, each held out once.", lower_bound=2)
    flags.DEFINE_string("compare_to", None, "The workdir of another run of this command.")
    flags.DEFINE_string("workdir", "runs/cross-validation-baselines", "Where folds and results are written.")
    _cli.run(main)
