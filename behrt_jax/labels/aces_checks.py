"""Checks an ACES configuration for mistakes that ACES ignores, loops on forever, or reports as a bare Python error."""

import datetime
import graphlib
import math
import re
from collections.abc import Iterator
from typing import Any

import polars as pl
from aces.config import PlainPredicateConfig, TaskExtractorConfig, WindowConfig

EVENT_COLUMNS = ("subject_id", "time", "code", "numeric_value")
# Columns that ACES uses internally; a predicate with such a name would overwrite one.
RESERVED = (*EVENT_COLUMNS, "timestamp", "timestamp_at_start", "timestamp_at_end", "window_name", "label")
RESERVED = (*RESERVED, "index_timestamp", "trigger", "subtree_anchor_timestamp", "child_anchor_timestamp")
MOST_DAYS = 365_250  # of a window; longer ones overflow times
CODE = "a code, {regex: PATTERN} or {any: [CODE, CODE]}"


def check_task(task: dict[str, Any], file: str) -> None:
    """Checks that the YAML has the structure of a task and no cyclic predicates, on which ACES does not terminate.

    Raises:
      ValueError: a check fails; the message names the file and the key.
    """
    _check(task, "trigger", str, f"{file}: trigger", "the name of the predicate that begins an index date")
    graph = {}
    for section in ("predicates", "patient_demographics"):
        for name, predicate in _entries(task, section, file):
            where = f"{file}: {section}.{name}"
            if "code" not in predicate and "expr" not in predicate:
                raise ValueError(f"{where}: has no code (found {', '.join(predicate)}); expected code: {CODE}, or expr")
            if "expr" in predicate:
                _check(predicate, "expr", str, f"{where}.expr", "an expression, such as or(A, B)")
            graph[name] = re.findall(r"\w+", predicate.get("expr", "").partition("(")[2])
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        chain = " of ".join(error.args[1][::-1])
        raise ValueError(f"{file}: predicates.{error.args[1][0]}: is made of itself ({chain}); correct expr") from error
    for name, window in _entries(task, "windows", file):
        _check_window(window, f"{file}: windows.{name}")


def _check(section: dict[str, Any], key: str, kind: type | tuple[type, ...], where: str, expected: str) -> None:
    value = section.get(key)
    if not isinstance(value, kind):
        raise ValueError(f"{where}: '{value}'; expected {expected}")


def _entries(task: dict[str, Any], section: str, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the name and settings of each entry of a section."""
    entries = task.get(section, {})
    if not isinstance(entries, dict):
        raise ValueError(
            f"{file}: {section}: '{entries}'; expected names with their settings; docs/labels.md has an example"
        )
    for name, settings in entries.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
            raise ValueError(f"{file}: {section}: '{name}'; expected a name of letters, digits and _; rename it")
        if not isinstance(settings, dict) or not all(isinstance(key, str) and key for key in settings):
            raise ValueError(f"{file}: {section}.{name}: '{settings}'; expected settings, such as {{code: CODE}}")
        yield name, settings


def _check_window(window: dict[str, Any], where: str) -> None:
    for key in ("start", "end"):
        _check(window, key, (str, type(None)), f"{where}.{key}", "null, or a text such as trigger or start + 30d")
        if re.search(r"(->|<-)\s*$", window.get(key) or ""):
            raise ValueError(f"{where}.{key}: '{window[key]}'; expected a predicate after the arrow")
        _check(window, f"{key}_inclusive", bool, f"{where}.{key}_inclusive", "true or false")
    for key, expected in (("label", "the name of a predicate"), ("index_timestamp", "start or end")):
        _check(window, key, (str, type(None)), f"{where}.{key}", expected)
    if not isinstance(counts := window.get("has", {}), dict):
        raise ValueError(f"{where}.has: '{counts}'; expected predicates with bounds, such as {{death: \"(None, 0)\"}}")
    for name, bounds in counts.items():
        is_text = isinstance(name, str) and isinstance(bounds, str)
        match = re.fullmatch(r"\(?\s*(\d*|None)\s*,\s*(\d*|None)\s*\)?", bounds) if is_text else None
        minimum, maximum = (int(part) if part.isdigit() else None for part in match.groups()) if match else (None, None)
        if (minimum is None and maximum is None) or (minimum is not None and maximum is not None and maximum < minimum):
            raise ValueError(
                f"{where}.has.{name}: '{bounds}'; expected a least and a most count, such as \"(1, None)\""
            )


def check_config(config: TaskExtractorConfig, file: str) -> None:
    """Checks the values of a task that ACES has parsed.

    Raises:
      ValueError: a check fails; the message names the file and the key.
    """
    for kind, name in (("label", config.label_window), ("index_timestamp", config.index_timestamp_window)):
        if not name:
            raise ValueError(
                f"{file}: no window has '{kind}'; name the predicate of the label, and start or end of a window"
            )
        other_end = "end" if config.windows[name].root_node == "start" else "start"  # pyright: ignore[reportOptionalSubscript]
        if f"{name}.{other_end}" not in config.window_nodes:
            raise ValueError(f"{file}: windows.{name}.{other_end}: the window with '{kind}' has no length; give it one")
    for name, window in (config.windows or {}).items():
        _check_length(window, f"{file}: windows.{name}")
    for name, predicate in config.predicates.items():
        where = f"{file}: predicates.{name}"
        if name in RESERVED or name in extra_columns(config):
            raise ValueError(f"{where}: a column has this name; rename the predicate")
        _check(vars(predicate), "static", bool, f"{where}.static", "true or false")
        if isinstance(predicate, PlainPredicateConfig):
            _check_plain(predicate, where)


def extra_columns(config: TaskExtractorConfig) -> tuple[str, ...]:
    """Returns the columns of the events that predicates read, other than those of the standard."""
    columns = (name for predicate in config.plain_predicates.values() for name in predicate.other_cols)
    return tuple(dict.fromkeys(columns))


def _check_length(window: WindowConfig, where: str) -> None:
    for end in (window.start_endpoint_expr, window.end_endpoint_expr):
        if abs(getattr(end, "window_size", datetime.timedelta())) > datetime.timedelta(days=MOST_DAYS):
            raise ValueError(f"{where}: is longer than {MOST_DAYS:,} days; to go to an end of the record, write null")


def _check_plain(predicate: PlainPredicateConfig, where: str) -> None:
    code = predicate.code
    codes = code["any"] if isinstance(code, dict) and [*code] == ["any"] else [code]
    if isinstance(code, dict) and [*code] == ["regex"]:
        codes = [code["regex"]]
        try:
            pl.Series([""]).str.contains(code["regex"])
        except (TypeError, pl.exceptions.PolarsError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where}.code.regex: '{code['regex']}' is no pattern ({reason}); correct it") from error
    if not isinstance(codes, list) or not codes or not all(isinstance(item, str) and item for item in codes):
        raise ValueError(f"{where}.code: '{code}'; expected {CODE}")
    for key in ("value_min", "value_max"):
        value = getattr(predicate, key)
        if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
            raise ValueError(f"{where}.{key}: '{value}'; expected a number")
        _check(vars(predicate), f"{key}_inclusive", (bool, type(None)), f"{where}.{key}_inclusive", "true or false")
    for name, value in predicate.other_cols.items():
        if not isinstance(value, str | int | float):
            raise ValueError(f"{where}.{name}: '{value}'; expected a text or number of this column")
