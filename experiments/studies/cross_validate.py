"""Cross-validates fine-tuning by patient, with pre-training in each fold; also baselines, LSTM and BEHRT from scratch.

python -m experiments.studies.cross_validate --labels=FILE [--config=configs/survival.py] [--data=DIR] [--workdir=DIR]

Each fold's patients are held out once: the vocabulary, pre-training, fine-tuning and baselines see only the others, a
seventh of them for tuning. Finished runs are not repeated. `--only=0,1` runs only some folds, for example on other
machines; the same command without it then checks that all folds use the same labels and data, and makes the table.
"""

import json
from pathlib import Path

import numpy as np
import polars as pl
from absl import flags

from behrt_jax.baselines.outcomes import BOOSTED
from behrt_jax.data import events
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.evaluation.tables import COLUMNS, LOWER_IS_BETTER, format_cell, format_signed
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.training.workdir import EVALUATION_FILE, REPLICATES_FILE
from experiments import _cli
from experiments.studies.results import call

FOLD_SALT, TUNING_SALT, TUNING_SHARE = 1, 2, 0.15
MODELS = {"scratch": "BEHRT from scratch", "lstm": "LSTM", "behrt": "BEHRT"}
# The reference's LSTM, as in configs/lstm.py.
LSTM_KEYS = ("encoder=lstm", "hidden_dim=256", "rotary=none", "visit_bias=False", "time_bins=28")
LSTM = [f"--config.model.{key}" for key in LSTM_KEYS]
LSTM_SURVIVAL = ["--config.survival.loss=discrete"]


def write_view(data: Path, folder: Path, fold: int, folds: int) -> Path:
    """Writes a MEDS data set that links to the events of another and holds out a fold's patients."""
    view = folder / "data"
    (view / "metadata").mkdir(parents=True, exist_ok=True)
    beside = data / "metadata"
    for target in (data / "data", *(beside.iterdir() if beside.is_dir() else ())):
        link = view / target.relative_to(data)
        if target != data / events.SPLITS_FILE and not link.exists():
            link.symlink_to(target.resolve())
    shards = [events.read_shard(shard)["subject_id"].unique() for shard in events.find_shards(str(data))]
    ids = np.sort(pl.concat(shards).to_numpy())
    is_tuning = hash_fraction(TUNING_SALT, ids) < TUNING_SHARE
    names = np.where(fold_of(ids, folds) == fold, "held_out", np.where(is_tuning, "tuning", "train"))
    pl.DataFrame({"subject_id": ids, "split": names}).write_parquet(view / events.SPLITS_FILE)
    return view


def fold_of(subject_ids: np.ndarray, folds: int) -> np.ndarray:
    """Returns the fold of each subject, determined by its id alone."""
    return np.floor(folds * hash_fraction(FOLD_SALT, subject_ids)).astype(int)


def run_fold(folder: Path, view: Path) -> None:
    """Trains and evaluates all models of a fold, unless already done."""
    workdirs = {name: folder / name for name in ("pretrained", *MODELS)}
    shared = [f"--config.data.path={view}", *(f"--config.{each}" for each in FLAGS.set)]
    pretrain = [f"--config={FLAGS.pretrain}", f"--config.train.num_steps={FLAGS.pretrain_steps}", *shared]
    finetune = [f"--config={FLAGS.config}", f"--config.labels={FLAGS.labels}", *shared]
    lstm = LSTM + LSTM_SURVIVAL * (Path(FLAGS.config).stem == "survival")
    call("pretrain", *pretrain, f"--workdir={workdirs['pretrained']}", "--nobaselines")
    call("finetune", *finetune, f"--workdir={workdirs['scratch']}", "--nobaselines")
    call("finetune", *finetune, *lstm, f"--workdir={workdirs['lstm']}", "--nobaselines")
    options = [f"--config.pretrained={workdirs['pretrained']}", f"--versus={workdirs['scratch']},{workdirs['lstm']}"]
    call("finetune", *finetune, *options, f"--workdir={workdirs['behrt']}")


def read_fold(folder: Path, fold: int) -> dict[str, dict[str, Estimate]]:
    """Reads the metrics of each model in a fold; permutes resamples so that folds are independent of each other."""
    result = json.loads((folder / "behrt" / EVALUATION_FILE).read_text())
    replicates = np.load(folder / "behrt" / REPLICATES_FILE)
    order = np.random.default_rng(fold).permutation(bootstrap.NUM_RESAMPLES)
    paths = {str(folder / name): label for name, label in MODELS.items()}
    estimates = {}
    for key, values in replicates.items():
        model, _, metric = key.partition(": ")
        entry = (result["baselines"][model] if model != "BEHRT" else result["metrics"])[metric]
        label = paths.get(model, model)
        counts = entry["n"], entry.get("patients", 0)
        estimates.setdefault(label, {})[metric] = Estimate(entry["value"], values[order], *counts)
    return estimates


def average(found: list[dict[str, dict[str, Estimate]]]) -> dict[str, dict[str, Estimate]]:
    """Averages over folds the models and metrics that all folds have."""
    means = {}
    for model, metric in [(name, metric) for name, metrics in found[0].items() for metric in metrics]:
        parts = [fold[model][metric] for fold in found if metric in fold.get(model, {})]
        if len(parts) == len(found):
            values, replicates, *counts = zip(*parts, strict=True)
            mean = Estimate(float(np.mean(values)), np.mean(replicates, axis=0), *map(sum, counts))
            means.setdefault(model, {})[metric] = mean
    return means


def format_markdown(found: dict[str, dict[str, Estimate]]) -> str:
    """Formats a table in Markdown: models from best to worst, and the difference of our best models to each."""
    objective = next(iter(found["BEHRT"])).partition("/")[0]
    labels = {f"{objective}/{name}": label for name, label in COLUMNS[objective].items()}
    columns = {name: label for name, label in labels.items() if name in found["BEHRT"]}
    first, ours = next(iter(columns)), [name for name in ("BEHRT", BOOSTED) if name in found]
    sign = 1 if first.endswith(LOWER_IS_BETTER) else -1
    heads = ["", *columns.values(), *(f"{name} above it by" for name in ours)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for model, estimates in sorted(found.items(), key=lambda item: sign * item[1][first].value):
        cells = [format_cell(estimates[name].summary()) if name in estimates else "" for name in columns]
        gaps = {one: bootstrap.difference(found[one][first], estimates[first]) for one in ours if one != model}
        pairs = [format_signed(gaps[one]) if one in gaps else "" for one in ours]
        lines.append(f"| {model} | {' | '.join([*cells, *pairs])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs the command."""
    folder, folds = Path(FLAGS.workdir), FLAGS.folds
    chosen = sorted({int(word) for word in FLAGS.only}) if FLAGS.only else list(range(folds))
    if not set(chosen) <= set(range(folds)):
        raise ValueError(f"--only: found {chosen}; expected folds from 0 to {folds - 1}")
    views = {fold: write_view(Path(FLAGS.data), folder / f"fold-{fold}", fold, folds) for fold in chosen}
    for fold, view in views.items():
        print(f"fold {fold} of {folds}: {view}", flush=True)
        if not FLAGS.views:
            run_fold(folder / f"fold-{fold}", view)
    if FLAGS.views or len(chosen) < folds:
        print("finished; the same command without --only and --views checks all folds and makes the table")
        return
    estimates = average([read_fold(folder / f"fold-{fold}", fold) for fold in range(folds)])
    metrics = {model: bootstrap.summaries(each) for model, each in estimates.items()}
    versus = {a: {b: bootstrap.compare(estimates[a], estimates[b]) for b in estimates if b != a} for a in estimates}
    (folder / "cross_validation.json").write_text(json.dumps({"metrics": metrics, "versus": versus}, indent=1))
    (folder / "cross_validation.md").write_text(table := format_markdown(estimates))
    print(f"means of {folds} folds, 95% intervals over patients\n\n{table}")
    print(f"written: {folder / 'cross_validation.md'} and .json")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("labels", None, "A file of labels.", required=True)
    flags.DEFINE_string("config", "configs/survival.py", "The recipe of fine-tuning.")
    flags.DEFINE_string("pretrain", "configs/small.py", "The recipe of pre-training.")
    flags.DEFINE_integer("pretrain_steps", 2000, "Its steps.", lower_bound=1)
    flags.DEFINE_string("data", "data/synthea-1151", "A MEDS data set.")
    flags.DEFINE_integer("folds", 5, "Parts of the patients, each held out once.", lower_bound=2)
    flags.DEFINE_multi_string("set", [], "KEY=VALUE for all recipes, such as train.batch_size=16; may be repeated.")
    flags.DEFINE_bool("views", False, "Write the folds' data sets alone, to train other things on.")
    flags.DEFINE_list("only", None, "The folds to make now; all if not given.")
    flags.DEFINE_string("workdir", "runs/cross-validation", "Where the runs are made.")
    _cli.run(main)
