"""Predicts death in hospital 24 hours after admission to intensive care, on eICU: BEHRT, baselines and APACHE IVa.

python -m experiments.studies.eicu --input=DIR [--workdir=runs/eicu] [--jobs=2]

`--input` holds the tables of eICU or of its demo. Hospitals are held out, a fold of them at a time: the vocabulary,
pre-training, fine-tuning and baselines see only patients of the others, a seventh of them for tuning. The tables pool
the predictions of all folds, with intervals over patients. Finished runs are not repeated. See docs/eicu.md.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import scipy.sparse
from absl import flags

from behrt_jax.baselines import outcomes
from behrt_jax.data.folds import write_view
from behrt_jax.data.histories import AGE_KNOTS
from behrt_jax.embeddings.patients import embed
from behrt_jax.evaluation.tables import format_cell, format_signed
from behrt_jax.finetuning import data as labeled_data
from behrt_jax.finetuning import finetuned
from behrt_jax.labels.label_files import write_labels
from behrt_jax.metrics import bootstrap, classification
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.regression import value_features
from behrt_jax.regression.outcome_features import Inputs, fit_columns
from behrt_jax.sources import convert, eicu_stays
from behrt_jax.training import workdir
from experiments import _cli
from experiments.studies import sweep

HOURS, FOLDS, SEEDS, POOLINGS = 24, 5, 2, ("mean", "max")
# APACHE_DX has the time of the admission, though entered later; ADMISSION_DX has the same with the time of its entry.
PRETRAINING = {"data.codes_exclude": ("MEDS_BIRTH", "APACHE_DX//*"), "data.text_values": True}
PRETRAINING |= {"data.roll_up": ("parents", "prefix"), "model.rotary": "positions"}  # stays are too short for ages
PRETRAINING |= {"train.num_steps": 1200, "train.evaluate_every": 400}
FINETUNING = {"train.num_steps": 300, "train.evaluate_every": 25, "optimizer.learning_rate": 5e-4}
APACHE, TUNED, EMBEDDED = "APACHE IVa", "BEHRT, fine-tuned", "embeddings, ridge"
OURS, RIDGE, BOOSTED = "embeddings, counts and values, ridge", "counts and values, ridge", "counts and values, XGBoost"
KEYS = list(eicu_stays.KEYS)
COLUMNS = {"auroc": "AUROC", "auprc": "AUPRC", "calibration_slope": "slope", "calibration_error": "calibration error"}
COHORTS = {
    "in the unit": pl.col("in_unit"),
    f"in the unit, with a prediction by {APACHE}": pl.col("in_unit") & pl.col("apache").is_not_null(),
    f"in hospital, with a prediction by {APACHE}": pl.col("apache").is_not_null(),
}


def read_cohort(folder: Path, source: Path) -> pl.DataFrame:
    """Converts the tables unless that is done, and writes the labels and the groups of hospitals; returns the stays."""
    if not (folder / "meds" / "data").exists():
        convert.convert(convert.Source(source, "eicu"), folder / "meds")
    stays = eicu_stays.read_stays(source, folder / "meds", HOURS)
    write_labels(stays.select(*KEYS, "boolean_value"), folder / "death_in_hospital.parquet")
    write_labels(eicu_stays.group_hospitals(source, folder / "meds"), folder / "groups.parquet")
    return stays


def make_stages(folder: Path, fold: int) -> list[dict[str, sweep.Run]]:
    """Returns the runs of a fold by name: pre-training, then fine-tuning with each seed."""
    place = folder / f"fold-{fold}"
    view = write_view(folder / "meds", place, fold, FOLDS, folder / "groups.parquet")
    keys = {"data.path": view, "data.prepared_dir": folder / "prepared"}
    encoder = sweep.training("pretrain", "configs/small.py", place / "pretrained", keys | PRETRAINING)
    keys |= {"labels": folder / "death_in_hospital.parquet", "pretrained": encoder.workdir, **FINETUNING}
    recipe, seeds = "configs/classification.py", range(SEEDS)
    runs = [sweep.training("finetune", recipe, place / f"seed-{seed}", keys | {"seed": seed}) for seed in seeds]
    return [{f"fold {fold}, {run.workdir.name}": run for run in stage} for stage in ([encoder], runs)]


def score_fold(folder: Path) -> pl.DataFrame:
    """Fits the baselines of a fold; returns the probabilities of all models for held-out patients, one column each."""
    run, encoder = finetuned.load(folder / "seed-0", None), workdir.load(folder / "pretrained")
    encoder, size = (encoder.recipe.data, encoder.model, encoder.params), run.recipe.evaluation.batch_size
    # Baselines read every value, and codes as often as they were recorded.
    data = dataclasses.replace(run.recipe.data, value_encoding="continuous", unique_codes_in_visit=False)
    prepared, splits = labeled_data.read_splits(dataclasses.replace(run.recipe, data=data), None)
    labels, tables = {name: part.labels for name, part in splits.items()}, {}
    for name, part in splits.items():
        inputs = (part.histories, part.labels.prediction_times, prepared.vocabulary.tokens)
        table = value_features.read(*inputs, days=HOURS / 24)
        embeddings = embed(*encoder, run.splits[name].model_inputs, size, poolings=POOLINGS)
        embeddings = np.hstack([embeddings[pooling] for pooling in POOLINGS])
        nothing = Inputs(table.basic, scipy.sparse.csr_array((len(part.labels), 0)))
        tables[name] = {"age": nothing._replace(basic=table.basic[:, : len(AGE_KNOTS)]), "age and sex": nothing}
        tables[name] |= {RIDGE: table, BOOSTED: table, EMBEDDED: nothing.widened(embeddings)}
        tables[name] |= {OURS: table.widened(embeddings)}
    columns = {"subject_id": labels["held_out"].subject_ids, "prediction_time": labels["held_out"].prediction_times}
    happened = {name: part.values[:, 0] > 0 for name, part in labels.items()}
    for model, table in tables["train"].items():
        scaler = fit_columns(table, labels["train"].subject_ids)
        scaled = {name: scaler.scale(each[model]) for name, each in tables.items()}
        fitted = [(scaled[name], happened[name]) for name in ("train", "tuning")]
        columns[model] = outcomes.fit_inputs(*fitted, boosted=model == BOOSTED)(scaled["held_out"])
    own = pl.concat(pl.read_parquet(folder / f"seed-{seed}" / "predictions.parquet") for seed in range(SEEDS))
    own = own.group_by(KEYS).agg(pl.col("predicted_boolean_probability").cast(pl.Float64).mean().alias(TUNED))
    both = [pl.mean_horizontal(name, BOOSTED).alias(f"mean of {name} and XGBoost") for name in (RIDGE, OURS)]
    return pl.DataFrame(columns).with_columns(both).join(own, on=KEYS)


def measure(rows: pl.DataFrame, models: list[str]) -> dict[str, dict[str, Estimate]]:
    """Measures the predictions of each model for the same stays."""
    targets, patients = rows["boolean_value"].to_numpy(), rows["subject_id"].to_numpy()
    found = {name: classification.measure(rows[name].to_numpy(), targets, patients) for name in models}
    prefix = classification.PREFIX
    return {name: {key.removeprefix(prefix): value for key, value in each.items()} for name, each in found.items()}


def format_markdown(found: dict[str, dict[str, Estimate]]) -> str:
    """Formats a table of models from best to worst, with the paired differences of two of ours to each."""
    rows, heads = [], ["", *COLUMNS.values(), "AUROC: with embeddings above it by", "fine-tuned above it by"]
    for name, each in sorted(found.items(), key=lambda item: -item[1]["auroc"].value):
        gaps = [bootstrap.difference(found[own]["auroc"], each["auroc"]) for own in (OURS, TUNED)]
        gaps = ["" if name == own else format_signed(gap) for own, gap in zip((OURS, TUNED), gaps, strict=True)]
        rows.append([name, *(format_cell(each[key].summary()) if key in each else "" for key in COLUMNS), *gaps])
    return sweep.format_table(heads, rows)


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    stays = read_cohort(folder, Path(FLAGS.input))
    for stage in zip(*(make_stages(folder, fold) for fold in range(FOLDS)), strict=True):
        sweep.run_all({name: run for runs in stage for name, run in runs.items()}, FLAGS.jobs)
    scores = pl.concat(score_fold(folder / f"fold-{fold}") for fold in range(FOLDS))
    rows = stays.join(scores, on=KEYS).with_columns(pl.col("apache").alias(APACHE))
    texts, results = [f"{FOLDS} folds of hospitals, 95% intervals over patients; '{TUNED}': {SEEDS} seeds"], {}
    for title, chosen in COHORTS.items():
        part = rows.filter(chosen)
        found = measure(part, [*scores.columns[len(KEYS) :], *([APACHE] if APACHE in title else [])])
        patients, hospitals = (part[name].n_unique() for name in ("subject_id", "hospital"))
        about = f"{part.height:,} stays of {patients:,} patients in {hospitals} hospitals"
        texts.append(f"{title}: {about}, {part['boolean_value'].sum():,} deaths\n\n{format_markdown(found)}")
        versus = {a: {b: bootstrap.compare(found[a], found[b]) for b in found if b != a} for a in found}
        metrics = {name: bootstrap.summaries(each) for name, each in found.items()}
        results[title] = {"metrics": metrics, "versus": versus}
    (folder / "eicu.json").write_text(json.dumps(results, indent=1))
    (folder / "eicu.md").write_text("\n\n".join(texts))
    print("\n\n".join(texts), f"written: {folder / 'eicu.md'} and .json", sep="\n")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("input", None, "The folder of eICU's tables.", required=True)
    sweep.define_flags("runs/eicu")
    _cli.run(main)
