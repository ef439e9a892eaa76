"""Next-visit evaluation: scores a run, baselines and the oracle on held-out patients, by kind of code, age and sex."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from behrt_jax.baselines import next_visit
from behrt_jax.baselines.next_visit import Split
from behrt_jax.data import next_visit_targets, windows
from behrt_jax.data.dataset import Patients
from behrt_jax.data.sexes import sexes
from behrt_jax.evaluation import reliability
from behrt_jax.evaluation.comparison import Comparison, join
from behrt_jax.evaluation.loaded_run import Run, read_simulation, score_oracle
from behrt_jax.metrics import bootstrap, multilabel
from behrt_jax.objectives import scoring
from behrt_jax.simulation import oracle
from behrt_jax.training.pretraining import PretrainingTask

logger = logging.getLogger(__name__)
COMPARED = ("average_precision", "average_precision/new", "micro_f1", "recall@10", "recall@10/new")


class Predictions(NamedTuple):
    """Predictions for the tuning examples, to choose the threshold, and for the examples to score.

    Attributes:
      tuning: (N, T) probabilities; None to choose the threshold on the scored examples.
      scored: (N, T) probabilities.
    """

    tuning: np.ndarray | None
    scored: np.ndarray


def score_next_visits(run: Run, others: dict[str, Run], with_baselines: bool = True) -> Comparison:
    """Scores a run, other runs and the baselines on the same next visits, each predicted from the history before it.

    A run trained with known visit times (`objective.known_time_share`) is also scored with the start of each next visit
    given to all models, as `next_visit_known_time/...`.

    Args:
      run: the run to score.
      others: other runs on the same data, by name.
      with_baselines: whether to fit baselines.

    Returns:
      The comparison; empty, with a message, if there is no visit to predict.
    """
    train, tuning, scored = (find_examples(run, patients) for patients in (run.train, run.tuning, run.patients))
    if not len(scored.examples):
        logger.info(
            f"next visits: not scored, as none of {len(run.patients):,} patients has a second visit with a target"
        )
        return Comparison()
    splits = Splits(train, tuning, scored, describe(run, scored))
    comparison, days = _compare(run, others, splits, with_baselines)
    median_days = np.full(len(scored.examples), np.median(days_before(train)))
    errors = {"median days of train": bootstrap.summarize(days_errors(scored, median_days), "next_visit")}
    own_errors = bootstrap.summarize(days_errors(scored, days), "next_visit")
    parts = [comparison, Comparison(own=own_errors, baselines=errors)]
    if run.task.model.time_known:
        logger.info("next visits, with their start known")
        others = {name: other for name, other in others.items() if other.task.model.time_known}
        parts.append(_compare(run, others, splits, with_baselines, time_known=True)[0])
    return join(parts)


class Splits(NamedTuple):
    """The next-visit examples of each split; `described` holds the outcomes and groups of the scored ones."""

    train: Split
    tuning: Split
    scored: Split
    described: multilabel.Examples


def _compare(
    run: Run, others: dict[str, Run], splits: Splits, with_baselines: bool, time_known: bool = False
) -> tuple[Comparison, np.ndarray]:
    """Scores a run, other runs and the baselines on the same inputs; returns the comparison and the run's days."""
    name, scored = "next_visit_known_time" if time_known else "next_visit", splits.scored
    own, days = predict(run, splits.tuning, scored, time_known)
    predictors = {}
    if with_baselines:
        fit = next_visit.fit_with_time_known if time_known else next_visit.fit_baselines
        predictors = fit(
            splits.train,
            splits.tuning,
            len(run.vocabulary),
            model_examples(run, splits.train),
        )
    compared = {key: Predictions(predictor(splits.tuning), predictor(scored)) for key, predictor in predictors.items()}
    compared |= {key: predict(other, splits.tuning, scored, time_known)[0] for key, other in others.items()}

    def estimate(predictions: Predictions) -> dict[str, bootstrap.Estimate]:
        estimates = measure(predictions, splits.tuning, splits.described)
        return {key.replace("next_visit", name, 1): each for key, each in estimates.items()}

    logger.info("resampling patients")
    estimates, other_estimates = estimate(own), {key: estimate(each) for key, each in compared.items()}
    differing = {key: each for key, each in estimates.items() if key.partition("/")[2] in COMPARED}
    precision, recall, _ = multilabel.precision_recall(own.scored, scored.examples.targets)
    targets, patients = scored.examples.targets.toarray(), scored.examples.patients
    comparison = Comparison(
        own=bootstrap.summaries(estimates),
        baselines={key: bootstrap.summaries(each) for key, each in other_estimates.items()},
        differences={key: bootstrap.compare(differing, each) for key, each in other_estimates.items()},
        oracle=score_oracle(run, lambda: bootstrap.summaries(estimate(ask_oracle(run, scored, time_known)))),
        reliability={name: reliability.of_probabilities(own.scored, targets, patients)},
        precision_recall={name: {"precision": precision.tolist(), "recall": recall.tolist()}},
    )
    return comparison, days


def model_examples(run: Run, train: Split) -> int:
    """Estimates how many next-visit examples the model saw in training, with repeats, if all rows were full."""
    settings = run.recipe.train
    tokens = settings.num_steps * settings.batch_size * run.recipe.data.row_length
    return round(tokens * len(train.examples) / max(len(train.patients.codes), 1))


def find_examples(run: Run, patients: Patients) -> Split:
    """Finds the visits of patients to predict."""
    index = run.index(patients)
    return Split(patients, index, next_visit_targets.find_next_visits(patients, index, run.task.is_target))


def predict(run: Run, tuning: Split | None, scored: Split, time_known: bool = False) -> tuple[Predictions, np.ndarray]:
    """Returns a run's predictions for tuning, if given, and for the scored examples, and the days for the latter."""
    predictor = make_predictor(run.task, run.params, time_known)
    probabilities, days = predictor(scored)
    return Predictions(tuning and predictor(tuning)[0], probabilities), days


def make_predictor(
    task: PretrainingTask, params, time_known: bool = False
) -> Callable[[Split], tuple[np.ndarray, np.ndarray]]:
    """Returns a function that maps the examples of a split to (N, T) probabilities and (N,) days."""
    cut = task.recipe.objective.history == "random_cut"
    step = scoring.make_predict_step(task.model, np.flatnonzero(task.is_target), causal=not cut)

    def predict(split: Split) -> tuple[np.ndarray, np.ndarray]:
        rows = next_visit_targets.boundary_batches(*split, task.recipe.evaluation.batch_size, cut)
        return scoring.predict_next_visits(step, params, rows, split.examples.targets.shape, time_known)

    return predict


def describe(run: Run, split: Split) -> multilabel.Examples:
    """Returns the observed codes and the groups to measure: kinds of code, age bands, sexes."""
    patients, examples = split.patients, split.examples
    kinds = np.array([run.vocabulary.tokens[code].partition("//")[0] for code in examples.codes])
    ages = _minutes(split)[examples.visits - 1] / windows.MINUTES_PER_YEAR
    ages = np.where(patients.has_birth[examples.patients], ages, np.nan)
    cells = multilabel.group_cells(kinds, ages, sexes(patients, run.vocabulary.tokens)[examples.patients])
    return multilabel.Examples(examples.targets, examples.patients, examples.seen_before(), cells)


def measure(predictions: Predictions, tuning: Split, examples: multilabel.Examples) -> dict[str, bootstrap.Estimate]:
    """Computes the metrics of predictions, at the threshold with the best micro-F1 on tuning."""
    threshold_data = (predictions.scored, examples.targets)
    if predictions.tuning is not None:
        threshold_data = predictions.tuning, tuning.examples.targets
    return multilabel.measure(predictions.scored, examples, multilabel.best_threshold(*threshold_data))


def days_before(split: Split) -> np.ndarray:
    """Returns the days from the start of the previous visit to the start of each visit to predict: (N,)."""
    minutes, visits = _minutes(split), split.examples.visits
    return (minutes[visits] - minutes[visits - 1]) / windows.MINUTES_PER_DAY


def days_errors(split: Split, days: np.ndarray) -> bootstrap.PerTargetScores:
    """Computes the absolute error of log(1 + days) at each visit to predict."""
    errors = np.abs(np.log1p(np.maximum(days, 0)) - np.log1p(days_before(split)))
    return bootstrap.PerTargetScores(split.examples.patients, {"log_days_error": errors})


def ask_oracle(run: Run, split: Split, time_known: bool = False) -> Predictions:
    """Returns the oracle's predictions, with or without the start of each visit to predict.

    Raises:
      ValueError: the visits of the prepared data differ from those of the simulation.
    """
    simulated_world, histories = read_simulation(run.source, run.vocabulary, split.patients, split.index)
    columns = {code: place for place, code in enumerate(simulated_world.codes)}
    target_columns = np.array([columns.get(run.vocabulary.tokens[code], -1) for code in split.examples.codes])
    is_target = np.isin(np.arange(len(simulated_world.codes)), target_columns)
    probabilities = oracle.next_visit_probabilities(simulated_world, histories, is_target, time_known)
    next_probabilities = probabilities[split.examples.visits - 1].astype(np.float32)
    # Codes that the simulation lacks have probability 0.
    return Predictions(None, np.where(target_columns >= 0, next_probabilities[:, target_columns], 0.0))


def _minutes(split: Split) -> np.ndarray:
    return split.patients.minutes[split.index.starts[0]].astype(np.int64)
