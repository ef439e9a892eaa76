"""Section of the report on the model, its data and its settings."""

import collections
from pathlib import Path

import jax

from behrt_jax.data import events
from behrt_jax.report.parts import Missing, Section, Table, Text
from behrt_jax.report.source import NO_DATA, Source
from behrt_jax.training.config_file import flatten
from behrt_jax.training.describe import left_out
from behrt_jax.training.recipe import SURVIVAL, FinetuningRecipe, to_config
from behrt_jax.training.workdir import PARAMETERS_FILE

SHOWN_KINDS = 12
MODEL_KEYS = {
    "encoder": "encoder",
    "num_layers": "layers",
    "num_heads": "attention heads a layer",
    "hidden_dim": "width of the states",
    "embedding_dim": "width of the code table",
    "feedforward_dim": "width of the feed-forward layers",
    "pooling": "from tokens to the patient",
    "dropout": "dropout",
}


def describe(source: Source) -> Section:
    """Makes the section on the model, its data and its settings."""
    recipe = source.recipe
    sizes = source.read_json(PARAMETERS_FILE) or {"all": sum(leaf.size for leaf in jax.tree.leaves(source.params))}
    rows = [["trained on", training_goal(source)], ["parameters", f"{sizes['all']:,}"]]
    if sizes.get("trained", sizes["all"]) != sizes["all"]:
        rows.append(["of which trained", f"{sizes['trained']:,}"])
    if isinstance(recipe, FinetuningRecipe):
        rows.append(["starts from", Path(recipe.pretrained).name if recipe.pretrained else "random parameters"])
    rows += [[label, str(getattr(recipe.model, key))] for key, label in MODEL_KEYS.items()]
    rows += [["tokens a row", f"{recipe.data.row_length:,}"], ["seed", str(recipe.seed)]]
    paragraph, *tables = _describe_data(source)
    parts: list = [paragraph, Table("The model", ["what", "value"], rows), *tables, _count_kinds(source)]
    flat = [[key, str(value)] for key, value in sorted(flatten(to_config(recipe, source.facts)).items())]
    private_keys = ("data.path", "data.prepared_dir", "labels", "pretrained")  # paths of this machine are private
    flat = [[key, Path(value).name if key in private_keys else value] for key, value in flat]
    parts.append(Table("Every setting of the run", ["key", "value"], flat, note="folded"))
    return Section("run", "Model and data", "", parts)


def training_goal(source: Source) -> str:
    """Describes in words what the model was trained to predict."""
    names = {"mlm": "masked codes", "next_visit": "the next visit", "time_to_event": "the time to every code"}
    if source.is_pretrained:
        return " and ".join(names[each] for each in source.model.objectives)
    kind = "the time to" if source.recipe.kind == SURVIVAL else "whether a patient has"
    return f"{kind} {', '.join(source.facts.names)}"


def _describe_data(source: Source) -> list:
    if source.prepared is None:
        return [Missing(NO_DATA.capitalize(), f"python -m experiments.report --workdir={source.folder} --data=DIR")]
    counts = source.prepared.report
    kinds = {"patients": "patients", "tokens": "codes in all", "unknown": "of which too rare for the vocabulary"}
    enough = [counts[f"patients/{split}"] >= source.floor for split in events.SPLITS]
    numbers = {key: [f"{counts[f'{key}/{split}']:,}" for split in events.SPLITS] for key in kinds}
    rows = [
        [label, *(text if shown else "not shown" for text, shown in zip(numbers[key], enough, strict=True))]
        for key, label in kinds.items()
    ]
    name = source.about.get("dataset_name", source.data.resolve().name)
    origin = "simulated patients" if source.is_synthetic else "not known to be simulated"
    paragraph = (
        f"Data set: {name} ({origin}), {counts['events']:,} events in {counts['visits']:,} visits. Patients of train "
        "were learned from, those of tuning chose the checkpoint, and those of held_out were kept for the results."
    )
    omissions = left_out(counts)
    if counts["patients_without_birth"]:
        omissions["ages of patients without a birth"] = counts["patients_without_birth"]
    if counts.get("patients_without_sex"):
        omissions["patients of unknown sex"] = counts["patients_without_sex"]
    omission_rows = []
    for what, number in omissions.items():
        patients = omissions.get(what.removeprefix("events of "), number)  # the patients of these events
        enough = patients >= source.floor or "files" in what
        omission_rows.append([what, f"{number:,}" if enough else f"of fewer than {source.floor}, not shown"])
    splits = Table("Patients and codes of each split", ["", *events.SPLITS], rows)
    return [
        Text(paragraph),
        splits,
        Table("What was left out", ["what", "number"], omission_rows or [["nothing", "0"]]),
    ]


def _count_kinds(source: Source) -> Table:
    """Counts the codes of the vocabulary by prefix, the part of the name before the first //."""
    codes, numbers = collections.Counter(), collections.Counter()
    vocabulary, few = source.vocabulary, 0
    for code, count, patients in zip(vocabulary.codes, vocabulary.counts, vocabulary.patients, strict=True):
        if patients < source.floor:
            few += 1
            continue
        kind = code.partition("//")[0] if "//" in code else "without a prefix"
        codes[kind] += 1
        numbers[kind] += count
    common = numbers.most_common(SHOWN_KINDS)
    rows = [[kind, f"{codes[kind]:,}", f"{number:,}"] for kind, number in common]
    if len(numbers) > len(common):
        others = set(numbers) - {kind for kind, _ in common}
        rows.append(
            [f"{len(others)} others", *(f"{sum(each[kind] for kind in others):,}" for each in (codes, numbers))]
        )
    title = f"The vocabulary: {len(vocabulary.codes):,} codes, fitted on train"
    note = f"Without {few:,} codes of fewer than {source.floor} train patients." if few else ""
    return Table(title, ["kind of code", "codes", "times in train"], rows, note)
