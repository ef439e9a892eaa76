"""Held-out metrics of a fine-tuned model and its baselines: `evaluation.json`, predictions and figures."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from behrt_jax.data import histories
from behrt_jax.data.metadata import is_synthetic
from behrt_jax.data.sexes import sexes
from behrt_jax.evaluation import plots_classification, plots_survival
from behrt_jax.evaluation.outcome_baselines import fit_baselines, predict_without_encoder
from behrt_jax.evaluation.small_cells import MIN_PATIENTS
from behrt_jax.finetuning import data, predict, setup
from behrt_jax.finetuning.finetuned import load, score_other
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.finetuning.predict import ClassPredictions, Predictions, SurvivalPredictions, targets_of
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.labels import Labels
from behrt_jax.metrics import bootstrap, classification, multilabel, survival
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.metrics.survival import Curves, Followed
from behrt_jax.training import digests, workdir
from behrt_jax.training.workdir import EVALUATION_FILE, REPLICATES_FILE

logger = logging.getLogger(__name__)
CURVE_POINTS = 50
REGRESSION = "the regression on codes alone"  # an input of the head, next to the embedding
WITHOUT_SPREAD = "survival/d_calibration_p"  # without spread over resamples, so differences have no interval


def evaluate_run(
    folder: Path,
    splits: dict[str, LabeledHistories] | None = None,
    compare_to: Sequence[str] = (),
    with_baselines: bool = True,
) -> dict:
    """Evaluates the best checkpoint of a workdir and the baselines on held-out patients, and writes the result.

    Args:
      folder: the workdir.
      splits: its labelled histories; read from the data if not given.
      compare_to: workdirs of other runs on the same labels, scored as further baselines.
      with_baselines: whether to fit baselines.

    Returns:
      As `evaluation.pretrained.evaluate_run`. If the true hazards of the labels are known, also `oracle`, the
      difference to it under `versus`, and under `versus_oracle` the difference of each model to it: of `BEHRT`, and
      of the baselines by name.
    """
    run = load(folder, splits)
    held_out, train = (run.splits[name].labels for name in ("held_out", "train"))
    logger.info("scoring")
    recipe, names = run.recipe, run.facts.names
    logits = {name: predict.score(recipe, run.model, run.params, entries) for name, entries in run.splits.items()}
    fitted = predict.fit_afterwards(recipe, logits, {name: part.labels for name, part in run.splits.items()})
    (folder / workdir.FITTED_FILE).write_text(json.dumps(fitted, indent=1))
    predictions = predict.predict(recipe.outcome, logits["held_out"], fitted)
    compared = fit_baselines(recipe, run.splits, run.tokens) if with_baselines else {}
    if "regression" in recipe.head.features:
        compared[REGRESSION] = predict_without_encoder(recipe, run.splits)
    for name in compare_to:
        compared[name] = score_other(Path(name), run)
    if held_out.truth is not None:
        compared["oracle"] = ask_oracle(held_out), {}
    groups = find_groups(run.splits["held_out"], run.tokens)
    data.warn_of_few(held_out)
    logger.info("resampling patients")
    measured = (held_out, train, names, recipe.evaluation.horizons, groups)
    entries = measure(predictions, fitted, *measured)
    result = {"split": "held_out", "patients": len(np.unique(held_out.subject_ids))}
    result["train_patients"] = len(np.unique(train.subject_ids))
    result["evaluated"] = digests.of_evaluation(folder, setup.digest_inputs(run.splits))
    result |= {"metrics": bootstrap.summaries(entries), "baselines": {}, "versus": {}}
    estimates = {"BEHRT": entries}
    for name, (other_predictions, other_fitted) in compared.items():
        estimates[name] = measure(other_predictions, other_fitted, *measured)
        (result if name == "oracle" else result["baselines"])[name] = bootstrap.summaries(estimates[name])
        result["versus"][name] = subtract(entries, estimates[name])
    if "oracle" in estimates:
        models = {name: each for name, each in estimates.items() if name != "oracle"}
        result["versus_oracle"] = {name: subtract(each, estimates["oracle"]) for name, each in models.items()}
    horizons = recipe.evaluation.horizons
    predict.write(folder / "predictions.parquet", held_out, predictions, names, fitted, horizons)
    models = {"BEHRT": predictions, **{name: other for name, (other, _) in compared.items()}}
    fewest = 1 if is_synthetic(recipe.data.path) else MIN_PATIENTS
    draw(models, held_out, names, horizons, folder / "figures", fewest)
    replicates = {f"{model}: {name}": each.replicates for model, run in estimates.items() for name, each in run.items()}
    np.savez_compressed(folder / REPLICATES_FILE, allow_pickle=False, **replicates)
    scratch = folder / f"{EVALUATION_FILE}.tmp"
    scratch.write_text(json.dumps(result, indent=1))
    scratch.replace(folder / EVALUATION_FILE)
    return result


def subtract(own: dict[str, Estimate], other: dict[str, Estimate]) -> dict[str, dict[str, float]]:
    """Returns the differences of the metrics that have an interval."""
    return bootstrap.compare({name: each for name, each in own.items() if not name.startswith(WITHOUT_SPREAD)}, other)


def ask_oracle(labels: Labels) -> SurvivalPredictions:
    """Returns the predictions of the oracle, which knows the hazard of simulated outcomes."""
    log_hazard, scale, shape = labels.truth.T[:, :, None]  # pyright: ignore[reportOptionalMemberAccess]
    return SurvivalPredictions(
        log_hazard, lambda days: -np.expm1(-np.exp(log_hazard) * (days / scale) ** shape)[:, None]
    )


def find_groups(found: LabeledHistories, tokens: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the age bands and sexes of labelled histories, in the format of `multilabel.group_cells`."""
    ages = histories.ages_at(found.histories, found.labels.prediction_times)
    return multilabel.group_cells(None, ages, sexes(found.histories, tokens))


def measure(
    said: Predictions,
    fitted: dict,
    labels: Labels,
    train: Labels,
    names: tuple[str, ...],
    horizons: tuple[float, ...],
    groups: dict[str, np.ndarray],
) -> dict[str, Estimate]:
    """Computes the metrics of predictions; censoring weights are estimated on `train`."""
    patients = labels.subject_ids
    if isinstance(said, ClassPredictions):
        names = names if said.probabilities.ndim > 1 else ()
        threshold = np.asarray(fitted.get("threshold", 0.5))
        return classification.measure(said.probabilities, targets_of(labels), patients, threshold, groups, names)
    if len(names) > 1:
        return survival.measure_causes(said.scores, labels.days, labels.events, patients, names)
    times = curve_times(horizons, train)
    curves = Curves(times, np.clip(1 - said.risks(times)[:, 0], 0, 1))  # a risk near 1 may be rounded above it
    followed, weights = (Followed(each.days, each.events > 0) for each in (labels, train))
    return survival.measure(said.scores[:, 0], followed, patients, weights, curves, groups, horizons)


def curve_times(horizons: tuple[float, ...], train: Labels) -> np.ndarray:
    """Returns the (T,) days at which to compare survival curves: the horizons, and quantiles of train's event times."""
    shares = np.linspace(0, 1, CURVE_POINTS)
    days = np.quantile(train.days[train.events > 0], shares, method="inverted_cdf")
    return np.unique(np.concatenate([days, horizons]))


def draw(
    models: dict[str, Predictions],
    labels: Labels,
    names: tuple[str, ...],
    horizons: tuple[float, ...],
    folder: Path,
    fewest: int,
) -> list[Path]:
    """Draws the figures of binary or survival outcomes of models, by name; none of fewer than `fewest` patients."""
    if len(np.unique(labels.subject_ids)) < fewest:
        logger.info(f"figures are left out: the held-out labels are of fewer than {fewest} patients, who may be real")
        return []
    if labels.kind == "binary":
        if label_data.describe_lack(labels, "held_out"):
            return []
        scores = {
            name: prediction.probabilities
            for name, prediction in models.items()
            if isinstance(prediction, ClassPredictions)
        }
        return plots_classification.draw_classification(
            scores, targets_of(labels), labels.subject_ids, folder, ", ".join(names), fewest
        )
    horizon, files = float(max(horizons)), []
    at_horizon = {
        name: prediction.risks(np.array([horizon]))[:, :, 0]
        for name, prediction in models.items()
        if isinstance(prediction, SurvivalPredictions)
    }
    for place, name in enumerate(names) if at_horizon else ():
        if not (labels.events == place + 1).any():
            continue
        risks = {model: prediction[:, place] for model, prediction in at_horizon.items()}
        where = folder if len(names) == 1 else folder / name
        rows = labels.days, labels.events, labels.subject_ids
        files += plots_survival.draw_survival(risks, *rows, horizon, where, names, place + 1, fewest)
    return files
