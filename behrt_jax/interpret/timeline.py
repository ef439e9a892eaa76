"""A patient's history, as the report shows it."""

import numpy as np

from behrt_jax.data.vocabulary import MASK
from behrt_jax.interpret import attribution
from behrt_jax.interpret.cases import AttributionCase


def timeline(case: AttributionCase, row: int, names: list[dict]) -> dict[str, list]:
    """Returns the visits of a history, and its tokens that have attributions or are `[MASK]`, named by `names[id]`."""
    columns = {name: values[row] for name, values in case.columns.items() if name not in ("covariates", "target")}
    numbers = np.where(columns["in_visit"], columns["visit_ids"], -1)
    tokens = [
        {**names[columns["codes"][place]], "visit": int(numbers[place]) if numbers[place] >= 0 else None}
        for place in shown_tokens(case, row)
    ]
    visits = []
    for number in range(numbers.max() + 1):
        place = np.argmax(numbers == number)
        age, days = (_number(columns[name][place]) for name in ("ages", "time_deltas"))
        visits.append({"visit": number, "age": age, "days_since_previous": days})
    return {"visits": visits, "tokens": tokens}


def shown_tokens(case: AttributionCase, row: int) -> np.ndarray:
    """Returns the positions of the tokens that have attributions, and of `[MASK]`."""
    columns = {name: case.columns[name][row : row + 1] for name in ("codes", "patient_ids")}
    return np.flatnonzero(np.asarray(attribution.is_explained(columns))[0] | (columns["codes"][0] == MASK))


def told_drivers(drivers: dict[str, np.ndarray], row: int, places: np.ndarray) -> dict[str, list[float]]:
    """Returns the scores of the shown tokens, by method."""
    return {name: [round(float(value), 5) for value in values[row, places]] for name, values in drivers.items()}


def _number(value) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
