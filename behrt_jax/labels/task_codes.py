"""Codes that a task needs, and which of them a data set has."""

import re

from behrt_jax.data.events import matching_codes
from behrt_jax.labels.aces import AcesTask
from behrt_jax.labels.time_to_event import TimeToEventTask


def find_codes(task: AcesTask | TimeToEventTask, codes: list[str]) -> dict[str, list[str]]:
    """Returns the codes of a data set that begin a task's index dates (`index`), and those of each of its outcomes.

    Index dates that are visits or dates need no code. A derived predicate has the codes of all its parts.
    """
    if isinstance(task, TimeToEventTask):
        groups = {"index": task.codes} if task.codes else {}
        groups |= {f"outcome {name}": patterns for name, patterns in task.events.items()}
        return {name: matching_codes(codes, patterns, ()) for name, patterns in groups.items()}
    label = next((window.label for window in task.config.windows.values() if window.label), None)
    groups = {"index": task.trigger} | ({f"outcome {label}": label} if label else {})
    return {name: [code for code in codes if _matches(task, predicate, code)] for name, predicate in groups.items()}


def _matches(task: AcesTask, predicate: str, code: str) -> bool:
    if predicate not in task.predicates:
        parts = getattr(task.config.predicates.get(predicate), "input_predicates", ())
        return any(_matches(task, part, code) for part in parts)
    wanted = task.config.plain_predicates[predicate].code
    if isinstance(wanted, str):
        return code == wanted
    return code in wanted["any"] if "any" in wanted else bool(re.search(wanted["regex"], code))
