"""Small cells: what is published or shown of real patients rests on enough of them that it tells of none."""

from behrt_jax.evaluation.tables import GROUPS

MIN_PATIENTS = 11  # real patients that whatever is published or shown rests on; the US CMS's policy for small cells


def drop_small(result: dict, floor: int) -> tuple[dict, int]:
    """Returns an evaluation without estimates of fewer patients than `floor`, and how many were left out.

    Where all that is left out of a metric's groups is of fewer than `floor` patients, the smallest group that remains
    goes too: else what was left out could be computed from the rest. Groups of an evaluation that does not say how many
    patients they have, as older ones, are left out.
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

    kept = {name: keep(result[name]) for name in ("metrics", "oracle") if name in result}
    parts = [part for part in ("baselines", "versus", "versus_oracle") if part in result]
    kept |= {part: {name: keep(table) for name, table in result[part].items()} for part in parts}
    return {**result, **kept}, len(small)


def small_names(patients: dict[str, int], floor: int) -> set[str]:
    """Returns the estimates, by name with their patients, that are left out; see `drop_small`."""
    small, families = {name for name, number in patients.items() if number < floor}, {}
    for name in patients:
        metric, _, group = name.rpartition("/")
        if group.startswith(GROUPS):
            families.setdefault((metric, group.partition("=")[0]), []).append(name)
    for family in families.values():
        left_out = [name for name in family if name in small]
        rest = [name for name in family if name not in small]
        if left_out and rest and sum(patients[name] for name in left_out) < floor:
            small.add(min(rest, key=lambda name: patients[name]))
    return small


def format_count(number: int, floor: int) -> str:
    """Writes a number of patients; a small one as `under 11`."""
    return f"under {floor}" if 0 < number < floor else f"{number:,}"


def format_counts(counts: list[int], floor: int) -> list[str]:
    """Writes how many patients each of some groups has; where the rest would tell a small number, one more is hidden.

    >>> format_counts([300, 40, 0, 2], 11)
    ['300', 'not shown', '0', 'under 11']
    >>> format_counts([300, 40, 0, 2], 1)
    ['300', '40', '0', '2']
    """
    small = [number for number in counts if 0 < number < floor]
    rest = [number for number in counts if number >= floor]
    hidden = min(rest) if rest and 0 < sum(small) < floor else None
    texts = [format_count(number, floor) for number in counts]
    if hidden is not None and len(counts) > 1:
        texts[counts.index(hidden)] = "not shown"
    return texts
