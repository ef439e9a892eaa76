"""A patient's history as the report shows it, and whose histories may be shown."""

import json
from pathlib import Path

import numpy as np

from behrt_jax import attribution
from behrt_jax.data import events
from behrt_jax.data.vocabulary import MASK
from experiments.explained import Case

# What the programs are called that make patients up, in `etl_name` of a data set's metadata/dataset.json.
SYNTHETIC = ("synthea", "behrt_jax.data.simulate")


def is_synthetic(data: str | Path) -> bool:
    """Whether `metadata/dataset.json` of a MEDS data set says by its `etl_name` that nobody is in it."""
    try:
        return json.loads((Path(data) / "metadata" / "dataset.json").read_text()).get("etl_name") in SYNTHETIC
    except (OSError, ValueError, AttributeError):
        return False


def check_allowed(data: str | Path, show_patients: bool) -> None:
    """Raises a ValueError where patients may be real and nobody has said that they may be shown."""
    if not (show_patients or is_synthetic(data)):
        raise ValueError(
            f"{Path(data) / 'metadata' / 'dataset.json'}: etl_name is none of {', '.join(SYNTHETIC)}: patients may be "
            "real, and examples hold their codes and ages; leave them out by --patients=0, or give --show_patients"
        )


class Names:
    """What codes are called.

    Attributes:
      tokens: of the vocabulary, by id.
      descriptions: by code, as `metadata/codes.parquet` has them.
    """

    def __init__(self, tokens: tuple[str, ...], data: str | Path):
        self.tokens = tokens
        self.descriptions = dict(events.read_codes(data, "description").iter_rows())

    def __call__(self, code: int) -> dict[str, str | None]:
        """Returns `code` and `description` of a token; a value's bin is a part of the code."""
        token = self.tokens[code]
        return {"code": token, "description": self.descriptions.get(token.partition("//Q")[0])}


def timeline(case: Case, row: int, names: Names) -> dict[str, list]:
    """Returns the tokens of a history that are explained and, with `[MASK]`, its visits."""
    columns = {name: values[row] for name, values in case.columns.items() if name not in ("traits", "target")}
    numbers = np.where(columns["in_visit"], columns["visit_ids"], -1)
    tokens = [
        {**names(columns["codes"][place]), "visit": int(numbers[place]) if numbers[place] >= 0 else None}
        for place in shown_tokens(case, row)
    ]
    visits = []
    for number in range(numbers.max() + 1):
        place = np.argmax(numbers == number)
        age, days = (_number(columns[name][place]) for name in ("ages", "time_deltas"))
        visits.append({"visit": number, "age": age, "days_since_previous": days})
    return {"visits": visits, "tokens": tokens}


def shown_tokens(case: Case, row: int) -> np.ndarray:
    """Returns the places of the tokens that are explained, and of `[MASK]`."""
    columns = {name: case.columns[name][row : row + 1] for name in ("codes", "patient_ids")}
    return np.flatnonzero(np.asarray(attribution.is_explained(columns))[0] | (columns["codes"][0] == MASK))


def told_drivers(drivers: dict[str, np.ndarray], row: int, places: np.ndarray) -> dict[str, list[float]]:
    """Returns the scores of the tokens that are shown, by method."""
    return {name: [round(float(value), 5) for value in values[row, places]] for name, values in drivers.items()}


def _number(value) -> float | None:
    return round(float(value), 2) if np.isfinite(value) else None
