"""Few-label methods without network training: their inputs, and the settings that each averages over.

Each method sees the labels of k patients only: hyperparameters are also selected within these k.
"""

import re

import numpy as np
import xgboost

from behrt_jax.data.hashing import hash_fraction
from behrt_jax.labels.labels import Labels
from behrt_jax.probing.features import COUNTS, DEMOGRAPHICS, EMBEDDINGS, RANDOM
from behrt_jax.probing.table import BOOSTING, OURS
from behrt_jax.probing.table import COUNTS as COUNTS_ARM
from behrt_jax.probing.table import RANDOM as RANDOM_ARM
from behrt_jax.regression import ridge
from behrt_jax.regression.ridge import Blocks, Outcome, Scorer

BOOSTING_FROM = 256  # patients; with fewer, trees have too little data
STRENGTHS = (0.5, 1.0, 2.0, 4.0, 8.0)
EXPECTED_AGE = 1.0  # of log odds or log rate, per standard deviation of age
AGE_ALONE, SIMPLE = 16.0, 4.0  # prior weights of the first two settings of `OURS`; the others have 1
SETTINGS = {
    COUNTS_ARM: [{DEMOGRAPHICS: 1.0, COUNTS: each} for each in STRENGTHS],
    RANDOM_ARM: [{DEMOGRAPHICS: 1.0, RANDOM: each} for each in STRENGTHS],
    # Age with its expected weight alone; age and sex; then each kind of features alone, and both in equal parts.
    OURS: [
        {},
        {DEMOGRAPHICS: 1.0},
        *({DEMOGRAPHICS: 1.0, COUNTS: each} for each in STRENGTHS),
        *({DEMOGRAPHICS: 1.0, EMBEDDINGS: each} for each in STRENGTHS),
        *({DEMOGRAPHICS: 1.0, COUNTS: 0.7 * each, EMBEDDINGS: 0.7 * each} for each in STRENGTHS),
    ],
}
FITTED = (*SETTINGS, BOOSTING)
TREES = {"eta": 0.05, "subsample": 0.5, "colsample_bynode": 0.1, "tree_method": "hist", "seed": 0, "nthread": 1}
DEPTHS, MOST_TREES = (1, 3), 200
FOLDS, FOLD_SALT = 4, 11


def outcome_of(labels: Labels) -> Outcome:
    """Converts one binary label, or times to one event, to the outcome of a regression."""
    survival = labels.kind == "survival"
    happened = labels.events > 0 if survival else labels.values[:, 0] > 0
    return Outcome(happened, labels.days if survival else None, labels.subject_ids)


def fit(arm: str, blocks: Blocks, labels: Labels) -> Scorer:
    """Fits the regression of an arm to labels and the feature blocks of their histories.

    `OURS` has a prior that holds for nearly every outcome: risk rises with age, by `EXPECTED_AGE`, and the simplest
    settings have higher prior weights, `AGE_ALONE` and `SIMPLE`.
    """
    settings = SETTINGS[arm]
    if arm != OURS:
        return ridge.fit(blocks, outcome_of(labels), settings)
    prior_mean = np.zeros(blocks[DEMOGRAPHICS].shape[1])
    prior_mean[0] = EXPECTED_AGE
    prior_weights = [AGE_ALONE, SIMPLE, *np.ones(len(settings) - 2)]
    return ridge.fit(blocks, outcome_of(labels), settings, prior_weights, {DEMOGRAPHICS: prior_mean})


def fit_and_score(arm: str, train: Blocks, held_out: Blocks, labels: Labels, rows: np.ndarray) -> np.ndarray:
    """Fits an arm to the given rows of train; returns (M,) scores of held_out."""
    sample, sample_labels = {name: values[rows] for name, values in train.items()}, labels.take(rows)
    if arm != BOOSTING:
        return fit(arm, sample, sample_labels)(held_out)
    inputs, held_out_inputs = (np.hstack([part[COUNTS], part[DEMOGRAPHICS]]) for part in (sample, held_out))
    return boost(inputs, held_out_inputs, sample_labels)


def boost(inputs: np.ndarray, wanted: np.ndarray, labels: Labels) -> np.ndarray:
    """Fits gradient boosting with depth and number of trees selected by cross-validation; returns (M,) scores.

    Args:
      inputs: (N, D) of the labels.
      wanted: (M, D) to score.
      labels: N labels; all labels of a patient are in one fold.
    """
    happened, days, _ = outcome_of(labels)
    target = happened.astype(float) if days is None else np.where(happened, days, -days)
    objective = {"objective": "binary:logistic" if days is None else "survival:cox"}
    matrix = xgboost.DMatrix(inputs, target)
    fold = np.floor(FOLDS * hash_fraction(FOLD_SALT, labels.subject_ids)).astype(int)
    folds = [(np.flatnonzero(fold != place), np.flatnonzero(fold == place)) for place in range(FOLDS)]
    best = (np.inf, 0, 0)
    for depth in DEPTHS:
        settings = {**TREES, **objective, "max_depth": depth}
        losses = xgboost.cv(settings, matrix, MOST_TREES, folds=folds, as_pandas=False)
        test_losses = next(np.array(each) for name, each in dict(losses).items() if re.match("test.*mean", name))
        best = min(best, (test_losses.min(), depth, int(test_losses.argmin()) + 1))
    model = xgboost.train({**TREES, **objective, "max_depth": best[1]}, matrix, best[2])
    return model.predict(xgboost.DMatrix(wanted), output_margin=True).astype(np.float64)
