"""Fits a power law to losses by number of patients: `floor + height * patients ** -exponent`."""

import numpy as np
from scipy.optimize import curve_fit


def power_law(patients, floor, height, exponent):
    """Returns a loss that falls to a floor: `floor + height * patients ** -exponent`."""
    return floor + height * np.asarray(patients, float) ** -exponent


def fit_power_law(patients: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits floor, height and exponent, all at least 0; returns them and their standard errors.

    Args:
      patients: (n,) numbers of patients.
      losses: (n,) float, nats.

    Raises:
      ValueError: there are fewer than four sizes, or the fit does not converge.
    """
    if len(patients) < 4:
        raise ValueError(
            f"a power law: found {len(patients)} sizes; expected four or more, to fit three numbers and their error"
        )
    start = (0.9 * losses.min(), (losses.max() - 0.9 * losses.min()) * patients.min() ** 0.5, 0.5)
    try:
        estimates, covariance = curve_fit(
            power_law, patients, losses, p0=start, bounds=(0, [np.inf, np.inf, 3]), maxfev=20_000
        )
    except RuntimeError as error:
        raise ValueError(f"no power law fits the losses {losses.round(4).tolist()} ({error})") from error
    return estimates, np.sqrt(np.diag(covariance))


def patients_for(loss: float, fit: np.ndarray) -> float:
    """Returns the number of patients at which a fit reaches a loss; infinite at its floor and below."""
    floor, height, exponent = fit
    return float((height / (loss - floor)) ** (1 / exponent)) if loss > floor and exponent else float("inf")


def describe_fit(name: str, patients: np.ndarray, losses: np.ndarray) -> str:
    """Formats the fit of a loss, and the loss to expect of twice as many patients as the last."""
    (floor, height, exponent), errors = fit_power_law(patients, losses)
    twice = power_law(2 * patients[-1], floor, height, exponent)
    return (
        f"{name} = {floor:.2f} + {height:.3g} N^-{exponent:.2f} (standard error of the exponent {errors[2]:.2f}); "
        f"twice {patients[-1]:,} patients would bring it from {losses[-1]:.3f} to {twice:.3f}"
    )
