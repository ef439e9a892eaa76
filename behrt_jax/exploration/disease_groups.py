"""Disease groups: which patients have which disease, by the codes of configs/diseases.yaml or by simulated truth."""

import logging
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from behrt_jax.data import events
from behrt_jax.data.metadata import describe_codes
from behrt_jax.labels.follow_up import section_of

logger = logging.getLogger(__name__)
TRUTH_FILE = "truth.parquet"  # true states of simulated patients
STAGE = "stage_"
KEYS, GROUP_KEYS = ("among", "groups"), ("codes", "descriptions")


class DiseaseGroups(NamedTuple):
    """Which patients have which disease at a given time.

    Attributes:
      names: names of the G diseases.
      has: (N, G) bool, whether the patient has it: by a code before the time, or by the true stage at the last visit.
      later: (N, G) bool, whether a patient without it gets it at the time or later, as far as is recorded.
    """

    names: tuple[str, ...]
    has: np.ndarray
    later: np.ndarray


def read_groups(
    data: str | Path, definitions: str | Path, subject_ids: np.ndarray, times: np.ndarray | None = None
) -> DiseaseGroups:
    """Finds which patients have which disease: by true stages if they are simulated, else by codes.

    Args:
      data: the folder of a MEDS data set, read one shard at a time; simulated if it holds `truth.parquet`.
      definitions: a YAML file such as configs/diseases.yaml; not read for simulated patients.
      subject_ids: (N,) int64, without repeats.
      times: (N,) datetime64; events at or after them count as `later`. If not given, all events count as `has`.

    Raises:
      ValueError: the file does not define groups, or no group has a code in the data set.
    """
    people = pl.DataFrame({"subject_id": np.asarray(subject_ids, np.int64), "row": np.arange(len(subject_ids))})
    until = None if times is None else np.asarray(times, "datetime64[us]")
    people = people.with_columns(until=pl.lit(None, pl.Datetime("us")) if until is None else pl.Series(until))
    earlier = pl.col("until").is_null() | (pl.col("time") < pl.col("until"))
    if (Path(data) / TRUTH_FILE).exists():
        names, table = _true_stages(Path(data) / TRUTH_FILE, people, earlier)
    else:
        names, table = _coded(Path(data), Path(definitions), people, earlier)
    has, later = np.zeros((2, len(people), len(names)), bool)
    rows = table["row"].to_numpy(), table["group"].to_numpy()
    has[rows], later[rows] = table["has"].to_numpy(), table["later"].to_numpy()
    return DiseaseGroups(names, has, later & ~has)


def _true_stages(file: Path, people: pl.DataFrame, earlier: pl.Expr) -> tuple[tuple[str, ...], pl.DataFrame]:
    stages = pl.read_parquet(file).join(people, on="subject_id").sort("subject_id", "time")
    columns = [name for name in stages.columns if name.startswith(STAGE)]
    flags = stages.group_by("row").agg(
        *(pl.col(name).filter(earlier).last().fill_null(0).gt(0).alias(f"has{name}") for name in columns),
        *(pl.col(name).filter(~earlier).gt(0).any().alias(f"later{name}") for name in columns),
    )
    parts = [
        flags.select("row", group=pl.lit(place), has=f"has{name}", later=f"later{name}")
        for place, name in enumerate(columns)
    ]
    return tuple(name.removeprefix(STAGE) for name in columns), pl.concat(parts)


def _coded(data: Path, definitions: Path, people: pl.DataFrame, earlier: pl.Expr) -> tuple:
    shards = events.find_shards(data)
    present = pl.concat([pl.scan_parquet(shard).select(pl.col("code").cast(pl.String)).unique() for shard in shards])
    codes = match_codes(definitions, present.unique().collect()["code"].sort().to_list(), describe_codes(data))
    names = tuple(name for name, members in codes.items() if members)
    if absent := [name for name in codes if name not in names]:
        logger.info(f"{definitions}: no code of {data} is in {', '.join(absent)}; left out")
    if not names:
        raise ValueError(f"{definitions}: no code of {data} is in any group; name its codes in a copy, --diseases=FILE")
    pairs = [(code, place) for place, name in enumerate(names) for code in codes[name]]
    table, parts = pl.DataFrame(pairs, {"code": pl.String, "group": pl.Int32}, orient="row"), []
    for shard in shards:
        matches = events.read_shard(shard).drop_nulls("time").join(table, on="code").join(people, on="subject_id")
        parts.append(matches.group_by("row", "group").agg(has=earlier.any(), later=(~earlier).any()))
    return names, pl.concat(parts)


def match_codes(
    definitions: str | Path, codes: list[str], descriptions: dict[str, str] | None = None
) -> dict[str, list[str]]:
    """Returns the codes in each group of a file of definitions.

    Args:
      definitions: a YAML file such as configs/diseases.yaml.
      codes: the codes of a data set.
      descriptions: by code, if known.

    Raises:
      ValueError: the file cannot be read, or one of its keys or patterns is invalid.
    """
    file, descriptions = Path(definitions), descriptions or {}
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected groups of diseases such as configs/diseases.yaml")
    try:
        sections = section_of(YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8")), KEYS, str(file))
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not a YAML file ({' '.join(str(error).split())}); correct it") from error
    if not sections.get("groups"):
        raise ValueError(f"{file}: holds no groups; expected `groups:`, and names below it as in configs/diseases.yaml")
    among = events.matching_codes(codes, _patterns(sections, "among", str(file)) or ("*",), ())
    codes_by_group = {}
    for name, group in sections["groups"].items():
        where = f"{file}: groups.{name}"
        globs = _patterns(section_of(group, GROUP_KEYS, where), "codes", where)
        words = _patterns(group, "descriptions", where)
        try:
            expressions = [re.compile(word, re.IGNORECASE) for word in words]
        except re.error as error:
            raise ValueError(f"{where}.descriptions: not a regular expression ({error}); correct it") from error
        by_code = set(events.matching_codes(among, globs, ())) if globs else set()
        texts = {code: descriptions.get(code, "") for code in among}
        codes_by_group[str(name)] = [
            code for code in among if code in by_code or any(pattern.search(texts[code]) for pattern in expressions)
        ]
    return codes_by_group


def _patterns(section: dict, key: str, where: str) -> tuple[str, ...]:
    patterns = section.get(key) or ()
    if isinstance(patterns, str) or not all(isinstance(each, str) for each in patterns):
        raise ValueError(f"{where}.{key}: found {patterns!r}; expected a list of patterns, such as [CONDITION//*]")
    return tuple(patterns)
