"""Codes that record a patient's sex, by one rule for all readers."""

import re

import numpy as np

from behrt_jax.data.dataset import Patients

SEXES = ("F", "M")
# The last part of a code is the sex, and an earlier part is one of NAMES: GENDER//F, Gender/FEMALE, SEX//8532 (OMOP).
NAMES = ("gender", "sex", "birthsex", "birth_sex", "sex_at_birth", "administrative_gender", "biological_sex")
VALUES = {
    "F": ("f", "female", "woman", "8532", "248152002"),
    "M": ("m", "male", "man", "8507", "248153007"),
}
_SEX_OF = {value: sex for sex, values in VALUES.items() for value in values}


def parse(given: tuple[str, ...]) -> dict[str, str]:
    """Maps the codes of `data.sex_codes`, written as CODE=F or CODE=M, to sexes; a ValueError for any other form."""
    pairs = [entry.rpartition("=") for entry in given]
    invalid = [entry for entry, (code, _, sex) in zip(given, pairs, strict=True) if not code or sex not in SEXES]
    if isinstance(given, str) or invalid:
        value = given if isinstance(given, str) else ", ".join(invalid)
        raise ValueError(f"data.sex_codes: found {value}; expected a tuple such as ('SEX//2=F', 'SEX//1=M')")
    return {code: sex for code, _, sex in pairs}


def sex_of(code: str) -> str:
    """Returns F or M if a code has one of the common forms, else an empty string."""
    parts = [re.sub(r"[ \-]", "_", part) for part in re.split(r"[/:|]+", code.lower())]
    if len(parts) == 1:
        parts = code.lower().rpartition("_")[::2]
    return _SEX_OF.get(parts[-1], "") if any(part in NAMES for part in parts[:-1]) else ""


def canonical(codes: list[str], given: tuple[str, ...], known: frozenset[str] = frozenset()) -> dict[str, str]:
    """Maps codes that record a sex to `GENDER//F` and `GENDER//M`, so that a vocabulary has one token for each.

    `given` is `data.sex_codes`. Tokens that are `known` are left unchanged: a given vocabulary was fitted on them.
    """
    sex_codes = parse(given)
    code_sexes = {code: sex_codes.get(code) or sex_of(code) for code in codes if code not in known}
    return {code: f"GENDER//{sex}" for code, sex in code_sexes.items() if sex}


def sex_tokens(tokens: tuple[str, ...]) -> np.ndarray:
    """Returns the sex that each token of a vocabulary records, (V,) int: 0 for none, else 1 + its index in `SEXES`."""
    return np.array([1 + SEXES.index(sex) if (sex := sex_of(token)) else 0 for token in tokens])


def sexes(patients: Patients, tokens: tuple[str, ...]) -> np.ndarray:
    """Returns the sex of each patient or history, (patients,) str of `SEXES`; empty where unknown.

    If a patient has several static or timed tokens of a sex, the last recorded one counts.
    """
    token_sexes = sex_tokens(tokens)[patients.codes]
    positions = np.flatnonzero(token_sexes)
    patient_sexes = np.zeros(len(patients), int)
    # In token order, so that later tokens overwrite earlier ones.
    patient_sexes[patients.owners[positions]] = token_sexes[positions]
    return np.array(["", *SEXES])[patient_sexes]
