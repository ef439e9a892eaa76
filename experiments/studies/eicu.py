"""Predicts death in hospital 24 hours after admission to intensive care, on eICU: BEHRT, baselines and APACHE IVa.

python -m experiments.studies.eicu --input=DIR [--workdir=runs/eicu] [--jobs=2]

`--input` holds the tables of eICU or of its demo. A fold of hospitals at a time is held out: vocabulary, pre-training,
fine-tuning and baselines see patients of the others. The result pools all folds. Finished runs are not repeated.
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
from behrt_jax.finetuning import data, setup
from behrt_jax.finetuning.pretrained import load_pretrained
from behrt_jax.labels.label_files import write_labels
from behrt_jax.metrics import bootstrap, classification
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.regression import value_features
from behrt_jax.regression.outcome_features import Inputs
from behrt_jax.sources import convert
from configs import classification as classification_recipe
from experiments import _cli
from experiments.studies import eicu_stays, sweep

HOURS, FOLDS, POOLINGS, PROBABILITY = 24, 5, ("mean", "max"), "predicted_boolean_probability"
# APACHE_DX has the time of the admission, though entered later; ADMISSION_DX has the same with the time of its entry.
PRETRAINING = {"data.codes_exclude": ("MEDS_BIRTH", "APACHE_DX//*"), "data.text_values": True}
PRETRAINING |= {"data.roll_up": ("parents", "prefix"), "model.rotary": "positions"}  # stays are too short for ages
PRETRAINING |= {"train.num_steps": 600, "train.evaluate_every": 300, "evaluation.num_mask_samples": 1}
FINETUNING = {"train.num_steps": 150, "train.evaluate_every": 50, "optimizer.learning_rate": 5e-4}
FINETUNING |= {"model.pooling": "max", "model.dropout": 0.2, "head.features": ("regression",)}
APACHE, TUNED, EMBEDDED = "APACHE IVa", "BEHRT, fine-tuned", "embeddings, ridge"
OURS, RIDGE, BOOSTED = "embeddings, counts and values, ridge", "counts and values, ridge", "counts and values, XGBoost"
KEYS = list(eicu_stays.KEYS)
COLUMNS = {"auroc": "AUROC", "auprc": "AUPRC", "calibration_slope": "slope", "calibration_error": "calibration error"}
COLUMNS = {f"{classification.PREFIX}{name}": label for name, label in COLUMNS.items()}
COHORTS = {
    "in the unit": pl.col("in_unit"),
    f"in the unit, with a prediction by {APACHE}": pl.col("in_unit") & pl.col("apache").is_not_null(),
    f"in hospital, with a prediction by {APACHE}": pl.col("apache").is_not_null(),
}


def read_cohort(folder: Path, source: Path) -> pl.DataFrame:
    """Converts the tables unless that is done, and writes the labels and the groups of hospitals; returns the stays."""
    if not (folder / "meds" / "data").exists():
        convert.convert(convert.Source(source, "eicu"), folder / "meds")
    stays = eicu_stays.read_stays(source, admissions := eicu_stays.read_admissions(folder / "meds"), HOURS)
    write_labels(stays.select(*KEYS, "boolean_value"), folder / "death_in_hospital.parquet")
    write_labels(eicu_stays.group_hospitals(source, admissions), folder / "groups.parquet")
    return stays


def make_runs(place: Path) -> tuple[sweep.Run, sweep.Run]:
    """Returns the pre-training of a fold, and the fine-tuning that rests on it."""
    keys = {key: value for key, value in make_keys(place).items() if key.startswith("data.")} | PRETRAINING
    encoder = sweep.training("pretrain", "configs/small.py", place / "pretrained", keys)
    keys = make_keys(place) | FINETUNING
    return encoder, sweep.training("finetune", "configs/classification.py", place / "finetuned", keys)


def make_keys(place: Path) -> dict[str, str]:
    """Returns the config keys of the data, the labels and the encoder of a fold."""
    keys = {"data.path": str(place / "data"), "data.prepared_dir": str(place.parent / "prepared")}
    return keys | {"labels": str(place.parent / "death_in_hospital.parquet"), "pretrained": str(place / "pretrained")}


def score_fold(place: Path, finetuned: bool) -> pl.DataFrame:
    """Fits the baselines of a fold; returns the probabilities of all models for held-out patients, one column each."""
    config = classification_recipe.get_config()
    config.update_from_flattened_dict(make_keys(place))
    recipe, run = load_pretrained(setup.read(config.to_dict()))
    _, rows = data.read_splits(recipe, run.vocabulary)
    # Baselines read every value, and codes as often as they were recorded.
    every = dataclasses.replace(recipe.data, value_encoding="continuous", unique_codes_in_visit=False)
    prepared, splits = data.read_splits(dataclasses.replace(recipe, data=every), None)
    labels, tables = {name: part.labels for name, part in splits.items()}, {}
    for name, part in splits.items():
        inputs = (part.histories, part.labels.prediction_times, prepared.vocabulary.tokens)
        table = value_features.read(*inputs, days=HOURS / 24)
        inputs = (recipe.data, run.model, run.params, rows[name].model_inputs, recipe.evaluation.batch_size)
        embeddings = np.hstack([*embed(*inputs, poolings=POOLINGS).values()])
        nothing = Inputs(table.basic, scipy.sparse.csr_array((len(part.labels), 0)))
        tables[name] = {"age": nothing._replace(basic=table.basic[:, : len(AGE_KNOTS)]), "age and sex": nothing}
        tables[name] |= {RIDGE: table, BOOSTED: table, EMBEDDED: nothing.widened(embeddings)}
        tables[name] |= {OURS: table.widened(embeddings)}
    columns = {"subject_id": labels["held_out"].subject_ids, "prediction_time": labels["held_out"].prediction_times}
    for model in tables["train"]:
        train, tuning = ((tables[name][model], labels[name].values[:, 0] > 0) for name in ("train", "tuning"))
        predict = outcomes.fit_inputs(train, tuning, labels["train"].subject_ids, boosted=model == BOOSTED)
        columns[model] = predict(tables["held_out"][model])
    both = [pl.mean_horizontal(name, BOOSTED).alias(f"mean of {name} and XGBoost") for name in (RIDGE, OURS)]
    scores = pl.DataFrame(columns).with_columns(both)
    if finetuned:
        own = pl.read_parquet(place / "finetuned" / "predictions.parquet", columns=[*KEYS, PROBABILITY])
        scores = scores.join(own.rename({PROBABILITY: TUNED}).cast({TUNED: pl.Float64}), on=KEYS)
    return scores


def format_markdown(found: dict[str, dict[str, Estimate]]) -> str:
    """Formats a table of models from best to worst, with the paired differences of ours to each."""
    rows, first = [], next(iter(COLUMNS))
    for name, each in sorted(found.items(), key=lambda item: -item[1][first].value):
        gap = format_signed(bootstrap.difference(found[OURS][first], each[first])) if name != OURS else ""
        rows.append([name, *(format_cell(each[key].summary()) if key in each else "" for key in COLUMNS), gap])
    return sweep.format_table(["", *COLUMNS.values(), f"AUROC: '{OURS}' above it by"], rows)


def main() -> None:
    """Runs the command."""
    stays = read_cohort(folder := Path(FLAGS.workdir), Path(FLAGS.input))
    places = [folder / f"fold-{fold}" for fold in range(FOLDS)]
    for fold, place in enumerate(places):
        write_view(folder / "meds", place, fold, FOLDS, folder / "groups.parquet")
    for stage in [*zip(*map(make_runs, places), strict=True)][: 1 + FLAGS.finetune]:
        sweep.run_all({f"{run.workdir.parent.name}, {run.command}": run for run in stage}, FLAGS.jobs)
    scores = pl.concat(score_fold(place, FLAGS.finetune) for place in places)
    rows = stays.join(scores, on=KEYS).with_columns(pl.col("apache").alias(APACHE))
    texts, results = [f"{FOLDS} folds of hospitals, 95% intervals over patients"], {}
    for title, chosen in COHORTS.items():
        part = rows.filter(chosen)
        models = [*scores.columns[len(KEYS) :], *([APACHE] if APACHE in title else [])]
        died, patients = part["boolean_value"].to_numpy(), part["subject_id"].to_numpy()
        found = {name: classification.measure(part[name].to_numpy(), died, patients) for name in models}
        about = f"{len(died):,} stays, {died.sum()} deaths, {part['hospital'].n_unique()} hospitals"
        texts.append(f"{title}: {about}\n\n{format_markdown(found)}")
        versus = {a: {b: bootstrap.compare(found[a], found[b]) for b in found if b != a} for a in found}
        metrics = {name: bootstrap.summaries(each) for name, each in found.items()}
        results[title] = {"metrics": metrics, "versus": versus}
    (folder / "eicu.json").write_text(json.dumps(results, indent=1))
    (folder / "eicu.md").write_text("\n\n".join(texts))
    print("\n\n".join(texts), f"written: {folder / 'eicu.md'} and .json", sep="\n")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("input", None, "The folder of eICU's tables.", required=True)
    flags.DEFINE_bool("finetune", True, "Fine-tune the encoder too, which takes a third of the time.")
    sweep.define_flags("runs/eicu")
    _cli.run(main)
