"""Checks before publication: no information on few patients, on other runs, or on the machine."""

import dataclasses
import json
import platform
from pathlib import Path

from behrt_jax.data import events, roll_up
from behrt_jax.data.config import DataConfig
from behrt_jax.data.values import round_scale
from behrt_jax.data.vocabulary import MIN_BIN_PATIENTS, Vocabulary, round_edge
from behrt_jax.evaluation.small_cells import drop_small
from behrt_jax.training import workdir

EDGE_DIGITS = 2
PATHS = ("path", "prepared_dir", "unit_table")


def check_floor(vocabulary: Vocabulary, floor: int) -> None:
    """Raises a ValueError if the vocabulary has codes of fewer than `floor` patients."""
    if few := sum(patients < floor for patients in vocabulary.patients):
        raise ValueError(
            f"{workdir.VOCABULARY_FILE}: {few:,} codes are of fewer than {floor} train patients; expected {floor} or "
            f"more: pre-train with --config.data.min_patients={floor}, or set --min_patients to what those who answer "
            "for the patients allow"
        )


def check_value_edges(vocabulary: Vocabulary, floor: int) -> None:
    """Raises a ValueError if edges of value bins, or medians of continuous values, may be values of real patients.

    Tokens were made with these edges, so they cannot be rounded now: the model would read other bins than in training.
    """
    known, fewest = dict(zip(vocabulary.codes, vocabulary.patients, strict=True)), max(floor, MIN_BIN_PATIENTS)
    exact = [
        code
        for code, edges in vocabulary.value_edges.items()
        if any(edge != round_edge(edge, EDGE_DIGITS) for edge in edges)
        or any(known.get(f"{code}//Q{place}", 0) < fewest for place in range(1, len(edges) + 2))
    ]
    exact += [
        code
        for code, units in vocabulary.value_scales.items()
        if any(scale != round_scale(scale, EDGE_DIGITS) or scale.patients < fewest for scale in units.values())
    ]
    if exact:
        raise ValueError(
            f"{workdir.VOCABULARY_FILE}: the values of {len(exact):,} codes have bins with edges or scales of more "
            f"than {EDGE_DIGITS} significant digits, or of fewer than {fewest} train patients; pre-train with "
            f"--config.data.value_digits={EDGE_DIGITS} --config.data.min_patients={fewest}, or with "
            "--config.data.value_encoding=none"
        )


def check_splits(report: dict, floor: int) -> None:
    """Raises a ValueError if a split, whose losses are published, has fewer than `floor` patients."""
    few = [split for split in events.SPLITS if report[f"patients/{split}"] < floor]
    if few:
        raise ValueError(
            f"{' and '.join(few)}: fewer than {floor} patients (--min_patients), and losses on each split go out; "
            "publish a run on more patients"
        )


def read_evaluation(file: Path, floor: int) -> tuple[dict, int]:
    """Reads an evaluation without other runs and small cells; also returns the number of estimates suppressed.

    Raises:
      ValueError: there is no evaluation, or it is not of held-out patients, or of too few.
    """
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not an evaluation ({error}); run experiments.evaluate first") from error
    if result.get("split") != "held_out" or "data" in result:
        content = f"split {result.get('split')!r}" + " of other data" * ("data" in result)
        raise ValueError(f"{file}: is of {content}; expected held_out of its own: run experiments.evaluate again")
    if result["patients"] < floor:
        raise ValueError(
            f"{file}: is of {result['patients']:,} held-out patients; expected {floor} or more (--min_patients)"
        )
    result.pop("evaluated", None)  # a digest of patients' data
    parts = ("baselines", "versus", "versus_oracle")
    for part in (part for part in parts if part in result):  # other runs are named by their folder
        result[part] = {name: content for name, content in result[part].items() if "/" not in name and "\\" not in name}
    return drop_small(result, floor)


def without_places(config: DataConfig) -> tuple[DataConfig, list[str]]:
    """Makes paths relative, or keeps only the last part of a path elsewhere; also returns the changes."""
    paths: dict = {key: _without_place(getattr(config, key)) for key in PATHS}
    paths["roll_up"] = tuple(rule if rule in roll_up.RULES else _without_place(rule) for rule in config.roll_up)
    changes = [f"data.{key} became {found!r}" for key, found in paths.items() if found != getattr(config, key)]
    return dataclasses.replace(config, **paths), changes


def _without_place(name: str) -> str:
    """Returns a path relative to this folder, or its last part if it is elsewhere; "" as it is."""
    path, here = Path(name), Path.cwd()
    if not name or not (path.is_absolute() or ".." in path.parts):
        return name
    full = path.resolve()
    return str(full.relative_to(here)) if full.is_relative_to(here) else full.name


def check_anonymous(folder: Path) -> None:
    """Raises a ValueError if a file contains the name of this machine or of one of its folders."""
    names = [name for name in (platform.node(), str(Path.home()), str(Path.cwd())) if len(name) > 5]
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        content = file.read_bytes()
        for name in names:
            if name.encode() in content:
                raise ValueError(f"{file.relative_to(folder)}: names {name!r}, which is of this machine; take it out")
