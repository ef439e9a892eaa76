"""Small-cell suppression: publishes and shows only results of enough real patients to identify none of them."""

from pathlib import Path

from behrt_jax.data.metadata import is_synthetic
from behrt_jax.evaluation.tables import GROUPS

CURVES = ("reliability", "precision_recall")
MIN_PATIENTS = 11  # fewest real patients behind a published or shown number; the small-cell policy of the US CMS


def find_floor(data: str | Path) -> int:
    """Returns the fewest patients behind a shown number of a data set: 1 if its patients are known to be simulated."""
    return 1 if is_synthetic(data) else MIN_PATIENTS


def drop_small(result: dict, floor: int) -> tuple[dict, int]:
    """Returns an evaluation without numbers of fewer than `floor` patients, and how many entries were suppressed.

    If the suppressed groups of a metric together have fewer than `floor` patients, the smallest remaining group is
    suppressed too: otherwise their values could be computed from the rest. Groups without a recorded number of
    patients, as in older evaluations, are suppressed. Of the reliability curves of a target the finest is kept whose
    bins are all of enough patients. Curves of precision and recall, whose ends are of few, are suppressed.
    """
    if floor <= 1:
        return result, 0
    tables = [*result["baselines"].values(), result.get("oracle", {}), result["metrics"]]
    entries = {name: entry for table in tables for name, entry in table.items()}
    patients = {
        name: entry.get("patients") or (0 if "=" in name else result["patients"]) for name, entry in entries.items()
    }
    small = small_names(patients, floor)

    def keep(table: dict) -> dict:
        return {name: entry for name, entry in table.items() if name not in small}

    shown = {name: keep(result[name]) for name in ("metrics", "oracle") if name in result}
    parts = [part for part in ("baselines", "versus", "versus_oracle") if part in result]
    shown |= {part: {name: keep(table) for name, table in result[part].items()} for part in parts}
    if "reliability" in result:
        shown["reliability"] = keep_curves(result["reliability"], floor)
    num_curves = sum(len(result[part]) - len(shown.get(part, {})) for part in CURVES if part in result)
    rest = {name: part for name, part in result.items() if name not in CURVES}
    return {**rest, **shown}, len(small) + num_curves


def keep_curves(curves: dict[str, list], floor: int) -> dict[str, list]:
    """Returns, by target, the first of its reliability curves with `floor` patients or more in each bin, if any."""
    enough = {
        name: [curve for curve in each if min(point["patients"] for point in curve) >= floor][:1]
        for name, each in curves.items()
    }
    return {name: each for name, each in enough.items() if each}


def small_names(patients: dict[str, int], floor: int) -> set[str]:
    """Returns the names of the estimates to suppress, given the patients of each; see `drop_small`."""
    small, families = {name for name, number in patients.items() if number < floor}, {}
    for name in patients:
        metric, _, group = name.rpartition("/")
        if group.startswith(GROUPS):
            families.setdefault((metric, group.partition("=")[0]), []).append(name)
    for family in families.values():
        left_out = [name for name in family if name in small]
        shown = [name for name in family if name not in small]
        if left_out and shown and sum(patients[name] for name in left_out) < floor:
            small.add(min(shown, key=lambda name: patients[name]))
    return small


def format_count(number: int, floor: int) -> str:
    """Formats a number of patients; a small one as `under 11`."""
    return f"under {floor}" if 0 < number < floor else f"{number:,}"


def format_counts(counts: list[int], floor: int) -> list[str]:
    """Formats the numbers of patients of groups; hides one more where the rest would reveal a small number.

    >>> format_counts([300, 40, 0, 2], 11)
    ['300', 'not shown', '0', 'under 11']
    >>> format_counts([300, 40, 0, 2], 1)
    ['300', '40', '0', '2']
    """
    small = [number for number in counts if 0 < number < floor]
    large = [number for number in counts if number >= floor]
    hidden = min(large) if large and 0 < sum(small) < floor else None
    texts = [format_count(number, floor) for number in counts]
    if hidden is not None and len(counts) > 1:
        texts[counts.index(hidden)] = "not shown"
    return texts
