"""Calibration of predicted probabilities by a temperature or isotonic regression, fitted on the tuning split."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit, softmax
from sklearn.isotonic import IsotonicRegression

from behrt_jax.metrics.classification import EPSILON, check

METHODS = ("temperature", "isotonic")
LOG_TEMPERATURES = (-1.6, 3.0)  # 0.2 to 20; without a bound, classes that are separable in a few rows give 0

Calibrator = Callable[[np.ndarray], np.ndarray]


def fit(probabilities: np.ndarray, targets: np.ndarray, method: str) -> tuple[Calibrator, dict]:
    """Fits a calibration on the tuning split.

    A temperature divides the logits (Guo et al. 2017): one temperature for each label, or one for all classes. It keeps
    the order of rows. Isotonic regression (Zadrozny & Elkan 2002) fits any increasing curve and needs some hundreds of
    positives. Its values stay 1 / (N + 2) away from 0 and 1, as N rows cannot show that an outcome is impossible.

    Args:
      probabilities: (N,) binary, (N, K) multi-label or multi-class.
      targets: (N,) bool binary; (N, K) bool multi-label; (N,) int multi-class, for which only a temperature is allowed.
      method: "temperature" or "isotonic".

    Returns:
      A function from probabilities to calibrated ones of the same shape, and its parameters as JSON types, from which
      `from_dict` rebuilds the function. A label that all rows have, or no row, is left uncalibrated: its entry in
      `labels` is None.

    Raises:
      ValueError: the method is unknown, or is isotonic for multi-class; or values are no probabilities or do not fit
        the targets.
    """
    if method not in METHODS:
        raise ValueError(f"calibration is {method!r}; expected one of {', '.join(METHODS)}")
    probabilities, targets = check(probabilities, targets)
    if probabilities.ndim > targets.ndim:
        if method != "temperature":
            raise ValueError("classes that exclude each other are calibrated by method='temperature' alone")
        parameters = {"method": "softmax", "temperature": _fit_softmax(probabilities, targets)}
        return from_dict(parameters), parameters
    columns = targets.reshape(len(targets), -1)
    fit_label = _fit_temperature if method == "temperature" else _fit_isotonic
    pairs = zip(probabilities.reshape(columns.shape).T, columns.T, strict=True)
    labels = [None if (outcomes == outcomes[0]).all() else fit_label(scores, outcomes) for scores, outcomes in pairs]
    parameters = {"method": method, "labels": labels}
    return from_dict(parameters), parameters


def from_dict(parameters: dict) -> Calibrator:
    """Builds the function from the parameters of `fit`; it raises ValueError for another number of labels."""
    if parameters["method"] == "softmax":
        return lambda found: softmax(np.log(np.clip(found, EPSILON, 1)) / parameters["temperature"], axis=-1)
    apply_label = _apply_temperature if parameters["method"] == "temperature" else _apply_isotonic

    def calibrate(found: np.ndarray) -> np.ndarray:
        found = np.asarray(found, np.float64)
        columns = found[:, None] if found.ndim == 1 else found
        if columns.shape[1] != len(parameters["labels"]):
            raise ValueError(f"{columns.shape[1]} labels were given; the calibration is of {len(parameters['labels'])}")
        pairs = zip(columns.T, parameters["labels"], strict=True)
        outputs = [
            column if label_parameters is None else apply_label(column, label_parameters)
            for column, label_parameters in pairs
        ]
        return np.stack(outputs, axis=1).reshape(found.shape)

    return calibrate


def _fit_temperature(probabilities: np.ndarray, targets: np.ndarray) -> float:
    signed = _logits(probabilities) * np.where(targets, 1, -1)
    return _minimize(lambda temperature: np.logaddexp(0, -signed / temperature).mean())


def _fit_softmax(probabilities: np.ndarray, targets: np.ndarray) -> float:
    if (targets == targets[0]).all():
        return 1.0
    logs = np.log(np.clip(probabilities, EPSILON, 1))
    target_logs = logs[np.arange(len(targets)), targets]
    return _minimize(
        lambda temperature: (np.logaddexp.reduce(logs / temperature, axis=1) - target_logs / temperature).mean()
    )


def _minimize(loss: Callable[[float], float]) -> float:
    result = minimize_scalar(lambda log: loss(np.exp(log)), bounds=LOG_TEMPERATURES, method="bounded")
    return float(np.exp(result.x))


def _fit_isotonic(probabilities: np.ndarray, targets: np.ndarray) -> dict[str, list[float]]:
    lowest = 1 / (len(targets) + 2)
    regression = IsotonicRegression(y_min=lowest, y_max=1 - lowest).fit(probabilities, targets)
    return {"from": regression.X_thresholds_.tolist(), "to": regression.y_thresholds_.tolist()}


def _apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    return expit(_logits(probabilities) / temperature)


def _apply_isotonic(probabilities: np.ndarray, steps: dict[str, list[float]]) -> np.ndarray:
    return np.interp(probabilities, steps["from"], steps["to"])


def _logits(probabilities: np.ndarray) -> np.ndarray:
    return logit(np.clip(probabilities, EPSILON, 1 - EPSILON))
