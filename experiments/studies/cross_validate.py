"""Cross-validates fine-tuning by patient, with pre-training in each fold; also baselines, LSTM and BEHRT from scratch.

python -m experiments.studies.cross_validate --labels=FILE [--config=configs/survival.py] [--data=DIR] [--workdir=DIR]
    [--jobs=2] [--baselines_only [--compare_to=DIR]]

Each fold's patients are held out once: the vocabulary, pre-training, fine-tuning and baselines see only the others, a
seventh of them for tuning. `--groups` holds out whole groups, such as hospitals. Finished runs are not repeated.
`--only=0,1` runs some folds, for example on other machines; without it the same command checks that all folds use the
same labels and data, and makes the table. `--baselines_only` leaves out BEHRT and the LSTM. `--compare_to` adds the
paired differences to another such workdir.
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from behrt_jax.baselines.outcomes import BOOSTED
from behrt_jax.data.folds import write_view
from behrt_jax.evaluation.tables import COLUMNS, LOWER_IS_BETTER, format_cell, format_signed
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.training.workdir import REPLICATES_FILE
from experiments import _cli
from experiments.studies import sweep

BASELINES = "baselines"  # the workdir of --baselines_only
MODELS = {"scratch": "BEHRT from scratch", "lstm": "LSTM", "behrt": "BEHRT"}
# The reference's LSTM, as in configs/lstm.py.
LSTM = {"model.encoder": "lstm", "model.hidden_dim": 256, "model.rotary": "none"}
LSTM |= {"model.visit_bias": False, "model.time_bins": 28}
LSTM_SURVIVAL = {"survival.loss": "discrete"}


def stages(folder: Path, view: Path) -> list[dict[str, sweep.Run]]:
    """Returns the runs of a fold by name, in stages: a run needs those of earlier stages alone."""
    extra = [f"--config.{each}" for each in FLAGS.set]
    keys = {"data.path": view, "labels": FLAGS.labels}
    if FLAGS.baselines_only:  # a network of one step stands in for BEHRT
        keys |= {"train.num_steps": 1}
        run = sweep.training("finetune", FLAGS.config, folder / BASELINES, keys, *extra, baselines=True)
        return [{BASELINES: run}]
    steps = f"--config.train.num_steps={FLAGS.pretrain_steps}"
    pretrained = sweep.training("pretrain", FLAGS.pretrain, folder / "pretrained", {"data.path": view}, steps, *extra)
    scratch = sweep.training("finetune", FLAGS.config, folder / "scratch", keys, *extra)
    lstm_keys = keys | LSTM | (LSTM_SURVIVAL if Path(FLAGS.config).stem == "survival" else {})
    lstm = sweep.training("finetune", FLAGS.config, folder / "lstm", lstm_keys, *extra)
    options = [*extra, f"--compare_to={scratch.workdir},{lstm.workdir}"]
    ours = keys | {"pretrained": pretrained.workdir}
    behrt = sweep.training("finetune", FLAGS.config, folder / "behrt", ours, *options, baselines=True)
    return [{"pre-training": pretrained, MODELS["scratch"]: scratch, MODELS["lstm"]: lstm}, {MODELS["behrt"]: behrt}]


def read_fold(folder: Path, fold: int, name: str = "behrt") -> dict[str, dict[str, Estimate]]:
    """Reads the metrics of each model in a fold; permutes resamples so that folds are independent of each other.

    `name` is the run whose evaluation holds all models: `behrt`, or `BASELINES`, whose own metrics are left out.
    """
    result = sweep.read_evaluation(folder / name)
    replicates = np.load(folder / name / REPLICATES_FILE)
    order = np.random.default_rng(fold).permutation(bootstrap.NUM_RESAMPLES)
    paths = {str(folder / name): label for name, label in MODELS.items()}
    estimates = {}
    for key, values in replicates.items():
        model, _, metric = key.partition(": ")
        if model == "BEHRT" and name == BASELINES:
            continue
        entry = (result["baselines"][model] if model != "BEHRT" else result["metrics"])[metric]
        label = paths.get(model, model)
        counts = entry["n"], entry.get("patients", 0)
        estimates.setdefault(label, {})[metric] = Estimate(entry["value"], values[order], *counts)
    return estimates


def format_markdown(found: dict[str, dict[str, Estimate]], other: dict[str, dict[str, Estimate]] | None = None) -> str:
    """Formats a table in Markdown: models from best to worst, and the difference of our best models to each.

    Args:
      found: the estimates by model and metric.
      other: those of the same models in another run, for a column of paired differences to it.
    """
    known = found.get("BEHRT") or next(iter(found.values()))
    objective = next(iter(known)).partition("/")[0]
    labels = {f"{objective}/{name}": label for name, label in COLUMNS[objective].items()}
    columns = {name: label for name, label in labels.items() if name in known}
    first, ours = next(iter(columns)), [name for name in ("BEHRT", BOOSTED) if name in found]
    sign = 1 if first.endswith(LOWER_IS_BETTER) else -1
    heads = ["", *columns.values(), *(f"{name} above it by" for name in ours)]
    heads += [f"{columns[first]}: difference"] if other else []
    rows = []
    for model, estimates in sorted(found.items(), key=lambda item: sign * item[1][first].value):
        cells = [format_cell(estimates[name].summary()) if name in estimates else "" for name in columns]
        compared = [found[one] if one != model else None for one in ours]
        gaps = [bootstrap.difference(each[first], estimates[first]) if each else None for each in compared]
        if other:
            gaps.append(bootstrap.difference(estimates[first], other[model][first]) if model in other else None)
        rows.append([model, *cells, *(format_signed(gap) if gap else "" for gap in gaps)])
    return sweep.format_table(heads, rows)


def read_folds(folder: Path, folds: int, baselines_only: bool) -> dict[str, dict[str, Estimate]]:
    """Reads all folds of a workdir and averages them."""
    name = BASELINES if baselines_only else "behrt"
    return bootstrap.average_folds([read_fold(folder / f"fold-{fold}", fold, name) for fold in range(folds)])


def main() -> None:
    """Runs the command."""
    folder, folds = Path(FLAGS.workdir), FLAGS.folds
    chosen = sorted({int(word) for word in FLAGS.only}) if FLAGS.only else list(range(folds))
    if not set(chosen) <= set(range(folds)):
        raise ValueError(f"--only: found {chosen}; expected folds from 0 to {folds - 1}")
    planned = []
    for fold in chosen:
        view = write_view(Path(FLAGS.data), folder / f"fold-{fold}", fold, folds, FLAGS.groups and Path(FLAGS.groups))
        print(f"fold {fold} of {folds}: {view}", flush=True)
        planned.append(stages(folder / f"fold-{fold}", view))
    for stage in zip(*planned, strict=True) if not FLAGS.views else ():
        by_fold = zip(chosen, stage, strict=True)
        sweep.run_all({f"fold {fold}, {name}": run for fold, runs in by_fold for name, run in runs.items()}, FLAGS.jobs)
    if FLAGS.views or len(chosen) < folds:
        print("finished; the same command without --only and --views checks all folds and makes the table")
        return
    estimates = read_folds(folder, folds, FLAGS.baselines_only)
    other = read_folds(Path(FLAGS.compare_to), folds, FLAGS.baselines_only) if FLAGS.compare_to else None
    metrics = {model: bootstrap.summaries(each) for model, each in estimates.items()}
    versus = {a: {b: bootstrap.compare(estimates[a], estimates[b]) for b in estimates if b != a} for a in estimates}
    file = folder / ("baselines.md" if FLAGS.baselines_only else "cross_validation.md")
    file.with_suffix(".json").write_text(json.dumps({"metrics": metrics, "versus": versus}, indent=1))
    file.write_text(table := format_markdown(estimates, other))
    print(f"means of {folds} folds, 95% intervals over patients\n\n{table}\nwritten: {file} and .json")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("labels", None, "A file of labels.", required=True)
    flags.DEFINE_string("config", "configs/survival.py", "The recipe of fine-tuning.")
    flags.DEFINE_string("pretrain", "configs/small.py", "The recipe of pre-training.")
    flags.DEFINE_integer("pretrain_steps", 2000, "Its steps.", lower_bound=1)
    flags.DEFINE_string("data", "data/synthea-1151", "A MEDS data set.")
    flags.DEFINE_string("groups", None, "A table of subject_id and group: each group is held out as a whole.")
    flags.DEFINE_integer("folds", 5, "Parts of the patients, each held out once.", lower_bound=2)
    flags.DEFINE_multi_string("set", [], "KEY=VALUE for all recipes, such as train.batch_size=16; may be repeated.")
    flags.DEFINE_bool("views", False, "Write the folds' data sets alone, to train other things on.")
    flags.DEFINE_list("only", None, "The folds to make now; all if not given.")
    flags.DEFINE_bool("baselines_only", False, "Cross-validate the baselines without BEHRT and the LSTM.")
    flags.DEFINE_string("compare_to", None, "The workdir of another run of this command, with the same folds.")
    sweep.define_flags("runs/cross-validation")
    _cli.run(main)
