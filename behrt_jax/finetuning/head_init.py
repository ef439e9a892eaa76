"""Initialises the head from a regression on covariates, so that training starts at that baseline."""

import numpy as np
from sklearn.linear_model import LogisticRegression, PoissonRegressor

from behrt_jax.objectives import classification, survival
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.survival import SurvivalConfig

PRIOR = 4.0  # prior variance of a coefficient (ridge)
YEAR = 365.25


def init_survival_head(
    covariates: np.ndarray,
    days: np.ndarray,
    events: np.ndarray,
    config: SurvivalConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits the log rate of each cause to covariates (Poisson regression), with the same weights in all time bins.

    Args:
      covariates: (N, F) of the train split, F 0 or more.
      days: (N,).
      events: (N,).
      config: the section `survival`, with its edges.

    Returns:
      (F, K) kernel and (K,) bias of the head, float32.
    """
    bias, years = survival.initial_bias(days, events, config), days / YEAR
    parts = [np.zeros((0, config.num_causes))]
    if covariates.shape[1]:
        model = PoissonRegressor(alpha=1 / (PRIOR * years.sum()), fit_intercept=True, tol=1e-7, max_iter=1000)
        causes = range(1, config.num_causes + 1)
        fits = [model.fit(covariates, (events == cause) / years, years).coef_ for cause in causes]
        parts = [np.stack(fits, axis=1)]
    kernel = np.repeat(parts[0], config.num_logits // config.num_causes, axis=1)
    # The expected number of events in each bin matches the observed number, among those at risk.
    time_at_risk = years[:, None] if config.loss == "cox" else survival.spent_in_bins(days, config)[0]
    time_at_risk = np.tile(time_at_risk, config.num_causes)
    risks = np.exp(covariates @ kernel)
    shift = np.log((time_at_risk * risks).sum(axis=0) / time_at_risk.sum(axis=0))
    return kernel.astype(np.float32), (bias - shift).astype(np.float32)


def init_classification_head(
    covariates: np.ndarray, targets: np.ndarray, config: ClassificationConfig, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fits the log odds of classes, or of each label, to covariates (logistic regression).

    Args:
      covariates: (N, F) of the train split, F 0 or more.
      targets: (N,) classes, or (N, K) labels, NaN where unknown.
      config: the section `classification`.
      num_classes: number of classes of (N,) targets.

    Returns:
      (F, K) kernel and (K,) bias of the head, float32.
    """
    if targets.ndim == 2:
        labels = [(~np.isnan(column), column) for column in targets.T]
        heads = [init_classification_head(covariates[known], column[known], config, 2) for known, column in labels]
        kernels, biases = zip(*heads, strict=True)
        return np.concatenate(kernels, axis=1), np.concatenate(biases)
    balanced, kind = config.class_weights == "balanced", "multi_class" if config.kind == "multi_class" else "binary"
    bias = classification.initial_bias(targets, kind, num_classes)
    bias = np.zeros_like(bias) if balanced else bias
    if not covariates.shape[1] or len(np.unique(targets)) < (num_classes if kind == "multi_class" else 2):
        return np.zeros((covariates.shape[1], len(bias)), np.float32), bias
    model = LogisticRegression(C=PRIOR, class_weight="balanced" if balanced else None, tol=1e-7, max_iter=1000)
    model.fit(covariates, targets)
    return model.coef_.T.astype(np.float32), model.intercept_.astype(np.float32)
