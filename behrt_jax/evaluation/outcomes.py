"""Held-out metrics of a fine-tuned model and its baselines: `evaluation.json`, predictions and figures."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from behrt_jax.data import histories
from behrt_jax.data.sexes import sexes
from behrt_jax.evaluation import comparison, reliability
from behrt_jax.evaluation.comparison import Comparison
from behrt_jax.evaluation.outcome_baselines import fit_baselines, predict_without_encoder
from behrt_jax.evaluation.small_cells import find_floor
from behrt_jax.finetuning import data, predict, setup
from behrt_jax.finetuning.finetuned import FinetunedModel, load, score_other
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.finetuning.predict import ClassPredictions, Predictions, SurvivalPredictions, targets_of
from behrt_jax.labels import labels as label_data
from behrt_jax.labels.labels import Labels
from behrt_jax.metrics import bootstrap, classification, multilabel, survival
from behrt_jax.metrics.bootstrap import Estimate
from behrt_jax.metrics.survival import Curves, Followed
from behrt_jax.plots.classification import draw_classification
from behrt_jax.plots.survival import draw_survival
from behrt_jax.training import digests, workdir
from behrt_jax.training.workdir import REPLICATES_FILE

logger = logging.getLogger(__name__)
CURVE_POINTS = 50
OWN, ORACLE = "BEHRT", "oracle"
REGRESSION = "the regression on codes alone"  # an input of the head, next to the embedding
WITHOUT_SPREAD = "survival/d_calibration_p"  # without spread over resamples, so differences have no interval


def evaluate_run(
    folder: Path,
    splits: dict[str, LabeledHistories] | None = None,
    compare_to: Sequence[str] = (),
    with_baselines: bool = True,
) -> Comparison:
    """Evaluates the best checkpoint of a workdir and the baselines on held-out patients, and writes the result.

    Also writes predictions, figures, and the replicates of every metric.

    Args:
      folder: the workdir.
      splits: its labelled histories; read from the data if not given.
      compare_to: workdirs of other runs on the same labels, scored as further baselines.
      with_baselines: whether to fit baselines.

    Returns:
      The comparison, with the oracle if the true hazards of the labels are known.
    """
    run = load(folder, splits)
    logger.info("scoring")
    own, others = score_own(folder, run), score_others(run, compare_to, with_baselines)
    held_out, train = (run.splits[name].labels for name in ("held_out", "train"))
    data.warn_of_few(held_out)
    logger.info("resampling patients")
    names, horizons = run.facts.names, run.recipe.evaluation.horizons
    measured = (held_out, train, names, horizons, find_groups(run.splits["held_out"], run.tokens))
    estimates, models = measure(*own, *measured), {OWN: own, **others}
    other_estimates = {name: measure(*model, *measured) for name, model in others.items()}
    every = {OWN: estimates, **other_estimates}.items()
    replicates = {f"{model}: {name}": each.replicates for model, found in every for name, each in found.items()}
    np.savez_compressed(folder / REPLICATES_FILE, allow_pickle=False, **replicates)
    predict.write(folder / "predictions.parquet", held_out, own[0], names, own[1], horizons)
    drawn = {name: predictions for name, (predictions, _) in models.items()}
    fewest = find_floor(run.recipe.data.path)
    about = {"split": "held_out", "patients": len(np.unique(held_out.subject_ids))}
    about["train_patients"] = len(np.unique(train.subject_ids))
    about["evaluated"] = digests.of_evaluation(folder, setup.digest_inputs(run.splits))
    result = compare(estimates, other_estimates)._replace(
        about=about,
        reliability=find_reliability(own[0], held_out, names, horizons),
        figures=tuple(draw(drawn, held_out, names, horizons, folder / "figures", fewest)),
    )
    comparison.write(folder, result)
    return result


def score_own(folder: Path, run: FinetunedModel) -> tuple[Predictions, dict]:
    """Predicts for held-out patients; returns what was fitted after training too, and writes it to the workdir."""
    recipe, splits = run.recipe, run.splits
    logits = {name: predict.score(recipe, run.model, run.params, part) for name, part in splits.items()}
    fitted = predict.fit_afterwards(recipe, logits, {name: part.labels for name, part in splits.items()})
    (folder / workdir.FITTED_FILE).write_text(json.dumps(fitted, indent=1))
    return predict.predict(recipe.outcome, logits["held_out"], fitted), fitted


def score_others(
    run: FinetunedModel, compare_to: Sequence[str], with_baselines: bool
) -> dict[str, tuple[Predictions, dict]]:
    """Predicts for held-out patients by baselines, other runs and the oracle; also returns what each fitted."""
    models = fit_baselines(run.recipe, run.splits, run.tokens) if with_baselines else {}
    if "regression" in run.recipe.head.features:
        models[REGRESSION] = predict_without_encoder(run.recipe, run.splits)
    models |= {name: score_other(Path(name), run) for name in compare_to}
    held_out = run.splits["held_out"].labels
    return models if held_out.truth is None else {**models, ORACLE: (ask_oracle(held_out), {})}


def compare(own: dict[str, Estimate], others: dict[str, dict[str, Estimate]]) -> Comparison:
    """Compares the estimates of the run with those of other models, and every model with the oracle if known."""
    baselines, oracle = {name: each for name, each in others.items() if name != ORACLE}, others.get(ORACLE, {})
    models = {OWN: own, **baselines} if oracle else {}
    return Comparison(
        own=bootstrap.summaries(own),
        baselines={name: bootstrap.summaries(each) for name, each in baselines.items()},
        differences={name: subtract(own, each) for name, each in others.items()},
        oracle=bootstrap.summaries(oracle),
        oracle_differences={name: subtract(each, oracle) for name, each in models.items()},
    )


def find_reliability(
    predictions: Predictions, labels: Labels, names: tuple[str, ...], horizons: tuple[float, ...]
) -> dict[str, reliability.ReliabilityCurves]:
    """Computes the reliability curves of each outcome, class or, at the last horizon, each event that occurred."""
    patients = labels.subject_ids
    if isinstance(predictions, SurvivalPredictions):
        horizon = float(max(horizons))
        risks, rows = predictions.risks(np.array([horizon]))[:, :, 0], (labels.days, labels.events, patients)
        return {
            f"{name} within {horizon:g} days": reliability.of_risks(risks[:, place - 1], *rows, horizon, place)
            for place, name in enumerate(names, start=1)
            if (labels.events == place).any()
        }
    targets = np.eye(len(names), dtype=bool)[targets_of(labels)] if labels.kind == "multiclass" else targets_of(labels)
    columns = [each.reshape(len(labels), len(names), 1) for each in (predictions.probabilities, targets)]
    return {
        name: reliability.of_probabilities(columns[0][:, place].astype(np.float32), columns[1][:, place], patients)
        for place, name in enumerate(names)
    }


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
        scores = {name: each.probabilities for name, each in models.items() if isinstance(each, ClassPredictions)}
        return draw_classification(scores, targets_of(labels), labels.subject_ids, folder, ", ".join(names), fewest)
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
        files += draw_survival(risks, *rows, horizon, where, names, place + 1, fewest)
    return files
