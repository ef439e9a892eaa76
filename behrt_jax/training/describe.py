"""Descriptions of a data set that commands print: its contents and the omitted items."""

from behrt_jax.data import batches, dataset, events, windows
from behrt_jax.data.prepare import Prepared
from behrt_jax.recipes import default
from behrt_jax.training.recipe import PretrainingRecipe


def describe_data(prepared: Prepared, num_parameters: int) -> list[str]:
    """Describes the data and the model in one line, and the omitted items in further lines."""
    counts = prepared.report
    tokens = sum(counts[f"tokens/{split}"] for split in events.SPLITS)
    unknown = sum(counts[f"unknown/{split}"] for split in events.SPLITS)
    patients = sum(counts[f"patients/{split}"] for split in events.SPLITS)
    splits = ", ".join(f"{counts[f'patients/{split}']:,} {split}" for split in events.SPLITS)
    lines = [
        f"found {patients:,} patients ({splits}), {counts['events']:,} events, {counts['visits']:,} visits, "
        f"{counts['codes']:,} codes, {tokens:,} tokens; the model has {num_parameters:,} parameters",
        "left out: " + (", ".join(f"{number:,} {kind}" for kind, number in left_out(counts).items()) or "nothing"),
        f"[UNK]: {unknown / max(tokens, 1):.2%} of tokens, codes of fewer than data.min_patients train patients",
    ]
    if backed_off := sum(counts[f"backed_off/{split}"] for split in events.SPLITS):
        lines.append(f"broader codes: {backed_off / tokens:.2%} of tokens, by data.roll_up")
    if counts["splits_made"]:
        split_file = prepared.folder / "subject_splits.parquet"
        lines.append(f"splits: the data has none; made 70/15/15 from a hash of the subject id, stored in {split_file}")
    if counts["splits_of_folders"]:
        lines.append(f"splits: those of the folders of the data, which has no {events.SPLITS_FILE}")
    if counts["empty_visit_columns"]:
        lines.append("visits: the columns that name visits are empty; calendar days are visits")
    if counts["patients_without_birth"]:
        lines.append(f"ages: unknown to the model for {counts['patients_without_birth']:,} patients without MEDS_BIRTH")
    if counts["patients_without_sex"]:
        unknown = f"{counts['patients_without_sex']:,} of {patients:,} patients"
        lines.append(f"sex: unknown of {unknown}; name the codes that record it in data.sex_codes")
    if counts["events_after_death"]:
        lines.append(f"kept: {counts['events_after_death']:,} events after a MEDS_DEATH")
    return lines


def describe_unmatched(recipe: PretrainingRecipe, prepared: Prepared) -> list[str]:
    """Lists patterns of a recipe that match no code, except default ones, which cover many kinds of data."""
    targets = () if recipe.objective.name == "mlm" else recipe.objective.targets
    codes = list(prepared.vocabulary.codes)
    unmatched = {
        "data.codes_include": set(prepared.report["unmatched_patterns"]).intersection(recipe.data.codes_include),
        "data.codes_exclude": set(prepared.report["unmatched_patterns"]).intersection(recipe.data.codes_exclude),
        "objective.targets": {pattern for pattern in targets if not events.matching_codes(codes, (pattern,), ())},
    }
    lines = []
    for key, patterns in unmatched.items():
        section, name = key.split(".")
        if custom_patterns := sorted(patterns.difference(default.get_config()[section][name])):
            lines.append(f"{key}: no code matches {', '.join(custom_patterns)}")
    return lines


def left_out(counts: dict) -> dict[str, int]:
    """Returns the number of items that data preparation omitted, by kind; without zeros."""
    numbers = {
        "hidden or system files": counts["hidden_files"],
        "files that are not *.parquet": counts["other_files"],
        "events by data.codes_include and data.codes_exclude": counts["events_left_out_by_pattern"],
        "events that name no visit": counts["events_without_visit"],
        "repeats of a code within a visit": counts["repeats_left_out"],
        "values of codes and units with too few patients or one value": counts.get("values_left_out", 0),
        "patients without any code left": counts["patients_without_codes"],
        "patients in other splits": counts["patients_in_other_splits"],
        "events of patients in other splits": counts["events_in_other_splits"],
        "events of patients without any code left": counts["events_of_patients_without_codes"],
    }
    return {kind: number for kind, number in numbers.items() if number}


def describe_rows(patients: dataset.Patients, row_length: int, use_sep: bool, seed: int) -> str:
    """Describes how full the packed rows of train are, and what does not fit in a row."""
    index = windows.index_visits(patients, row_length, use_sep)
    fill = batches.training_epoch(patients, index, seed, 0).fill / row_length
    cuts = windows.window_report(index, windows.newest_windows(index))
    return (
        f"rows: {row_length} tokens, {fill:.1%} full; {cuts['patients_cut']:,} of {cuts['patients']:,} train patients "
        "are longer than one: training draws a random window of whole visits, evaluation takes the newest (without "
        f"{cuts['visits_cut']:,} of {cuts['visits']:,} visits, {cuts['codes_cut_in_long_visits']:,} codes of visits "
        f"longer than a row and {cuts['static_codes_cut']:,} static codes past half a row)"
    )
