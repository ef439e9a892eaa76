"""What of a run may be published: nothing of few patients, of other runs, or of the machine."""

import json
import platform
from pathlib import Path

from ml_collections import ConfigDict

from behrt_jax import workdir
from behrt_jax.data.vocabulary import Vocabulary

PATHS = ("path", "prepared_dir")


def check_floor(config: ConfigDict, vocabulary: Vocabulary, floor: int) -> None:
    """Raises a ValueError where the vocabulary tells of codes, or of bins of values, of fewer patients than `floor`."""
    few = sum(patients < floor for patients in vocabulary.patients)
    bins = len(vocabulary.value_edges) if config.data.min_patients < floor else 0
    if few or bins:
        raise ValueError(
            f"{workdir.VOCABULARY_FILE}: {few:,} codes are of fewer than {floor} train patients, values of {bins:,} "
            f"may be; expected {floor} or more: pre-train with --config.data.min_patients={floor}, or set "
            "--min_patients to what those who answer for the patients allow"
        )


def read_evaluation(file: Path, floor: int) -> tuple[dict, int]:
    """Reads an evaluation without comparisons with other runs and groups of few patients; returns how many those are.

    Raises:
      ValueError: there is none, or it is not of held-out patients.
    """
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not an evaluation ({error}); run experiments.evaluate first") from error
    if result.get("split") != "held_out" or "data" in result:
        found = f"split {result.get('split')!r}" + " of other data" * ("data" in result)
        raise ValueError(f"{file}: is of {found}; expected held_out of its own: run experiments.evaluate again")
    result.pop("evaluated", None)  # a digest of patients
    parts = ("baselines", "versus", "versus_oracle")
    for part in (part for part in parts if part in result):  # another run's name is its folder
        result[part] = {name: found for name, found in result[part].items() if "/" not in name and "\\" not in name}
    tables = [result["metrics"], *result["baselines"].values(), *result["versus"].values()]
    few = {name for name, entry in result["metrics"].items() if entry.get("n", floor) < floor}
    for table in tables:
        for name in few & set(table):
            del table[name]
    return result, len(few)


def without_places(config: ConfigDict) -> tuple[ConfigDict, list[str]]:
    """Returns the config with paths relative to here, or of a path elsewhere the last part alone; and what changed."""
    config, changed = config.copy_and_resolve_references(), []
    for key in PATHS:
        path = Path(config.data[key])
        if path.is_absolute() or ".." in path.parts:
            here = Path.cwd()
            full = path.resolve()
            config.data[key] = str(full.relative_to(here)) if full.is_relative_to(here) else full.name
            changed.append(f"data.{key} became {config.data[key]!r}")
    return config, changed


def check_anonymous(folder: Path) -> None:
    """Raises a ValueError where a file names this machine, or a folder of it."""
    names = [name for name in (platform.node(), str(Path.home()), str(Path.cwd())) if len(name) > 5]
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for name in names:
            if name.encode() in content:
                raise ValueError(f"{file.relative_to(folder)}: names {name!r}, which is of this machine; take it out")
