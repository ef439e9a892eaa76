"""Metadata of a MEDS data set: descriptions of codes, and whether its patients are synthetic."""

import json
from pathlib import Path

from behrt_jax.data import events
from behrt_jax.data.vocabulary import Vocabulary


def read_descriptions(data: str | Path, vocabulary: Vocabulary) -> list[str]:
    """Returns the descriptions of a vocabulary's tokens, by id, from `metadata/codes.parquet` of a MEDS data set.

    A token with a value, such as `LAB//51087//Q7`, has the description of its code and `(Q7)`; tokens without a
    description have an empty string.

    Raises:
      ValueError: the file cannot be read or is malformed.
    """
    code_descriptions, descriptions = describe_codes(data), []
    for token in vocabulary.tokens:
        code, _, bin_id = token.rpartition("//")
        has_value = token not in code_descriptions and code in vocabulary.value_edges and code in code_descriptions
        descriptions.append(f"{code_descriptions[code]} ({bin_id})" if has_value else code_descriptions.get(token, ""))
    return descriptions


def describe_codes(data: str | Path) -> dict[str, str]:
    """Reads the descriptions of codes from `metadata/codes.parquet` of a MEDS data set; see `events.read_codes`."""
    return dict(events.read_codes(data, "description").iter_rows())


# Values of `etl_name` in metadata/dataset.json for programs that simulate patients.
SYNTHETIC = ("synthea", "behrt_jax.data.simulate")


def is_synthetic(data: str | Path) -> bool:
    """Returns whether `etl_name` in `metadata/dataset.json` of a MEDS data set is a program that simulates patients."""
    try:
        return json.loads((Path(data) / "metadata" / "dataset.json").read_text()).get("etl_name") in SYNTHETIC
    except (OSError, ValueError, AttributeError):
        return False


def check_allowed(data: str | Path, show_patients: bool) -> None:
    """Raises a ValueError if patients may be real and `show_patients` is not set."""
    if not (show_patients or is_synthetic(data)):
        raise ValueError(
            f"{Path(data) / 'metadata' / 'dataset.json'}: etl_name is none of {', '.join(SYNTHETIC)}: patients may be "
            "real, and examples hold their codes and ages; leave them out by --patients=0, or give --show_patients"
        )


def name_tokens(tokens: tuple[str, ...], data: str | Path) -> list[dict[str, str | None]]:
    """Returns `code` and `description` of each token, by id; `code` includes the bin of a value."""
    descriptions = describe_codes(data)
    return [{"code": token, "description": descriptions.get(token.partition("//Q")[0])} for token in tokens]
