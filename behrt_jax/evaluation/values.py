"""Evaluation of the values of masked codes: quantile loss, skill and coverage of a run and of baselines."""

import logging

import numpy as np

from behrt_jax.baselines import values
from behrt_jax.data import dataset
from behrt_jax.evaluation.comparison import Comparison
from behrt_jax.evaluation.loaded_run import Run
from behrt_jax.evaluation.masked_codes import masked_batches
from behrt_jax.metrics import bootstrap
from behrt_jax.metrics.bootstrap import Estimate, PerTargetScores
from behrt_jax.objectives import scoring

logger = logging.getLogger(__name__)


def score_values(run: Run, others: dict[str, Run], with_baselines: bool = True) -> Comparison:
    """Scores a run, other runs and the baselines on the values of the same masked codes.

    The skill of each is 1 - quantile loss / quantile loss of the code's quantiles in train.

    Args:
      run: the run to score; its model predicts values.
      others: other runs on the same data that predict values, by name.
      with_baselines: whether to fit baselines; without them there is no skill.
    """
    settings = run.recipe.evaluation
    scored_batches = list(masked_batches(run, run.patients, settings.num_mask_samples))
    found, compared = values.find_values(scored_batches), {}
    if not len(found.values):
        logger.info(f"values of masked codes: not scored, as {len(run.patients):,} patients have no value to mask")
        return Comparison()
    own = _score(run, scored_batches)
    if with_baselines:
        train = dataset.sample(run.train, settings.max_patients)
        fitted = values.find_values(masked_batches(run, train, settings.num_mask_samples))
        baselines = values.fit_baselines(fitted, len(run.vocabulary)) if len(fitted.values) else {}
        compared = {name: values.predict(predictor, found) for name, predictor in baselines.items()}
    compared |= {name: _score(other, scored_batches) for name, other in others.items()}
    estimates = {name: bootstrap.estimate(scores, "value") for name, scores in {"": own, **compared}.items()}
    if reference := estimates.get(values.CODE_QUANTILES):
        estimates = {name: each | _skill(each, reference) for name, each in estimates.items()}
    entries = {name: bootstrap.summaries(each) for name, each in estimates.items()}
    differences = {name: bootstrap.compare(estimates[""], estimates[name]) for name in compared}
    return Comparison(own=entries.pop(""), baselines=entries, differences=differences)


def _skill(model: dict[str, Estimate], reference: dict[str, Estimate]) -> dict[str, Estimate]:
    return {"value/skill": bootstrap.skill(model["value/quantile_loss"], reference["value/quantile_loss"])}


def _score(run: Run, masked: list[scoring.MaskedBatch]) -> PerTargetScores:
    """Scores a run on the masked codes that had a value."""
    scores = scoring.score(scoring.make_value_step(run.task.model), run.params, masked)
    has_value = ~np.isnan(scores.values["quantile_loss"])
    return PerTargetScores(scores.patients[has_value], {name: each[has_value] for name, each in scores.values.items()})
