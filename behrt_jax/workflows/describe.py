"""A page about a data set: what it holds, what deserves a look, and what can be trained on it."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from behrt_jax import recipes
from behrt_jax.data import dataset, events, metadata, profile, windows
from behrt_jax.data.prepare import Prepared, prepare
from behrt_jax.evaluation.loaded_run import is_simulated
from behrt_jax.evaluation.small_cells import find_floor
from behrt_jax.labels.task_codes import find_codes
from behrt_jax.labels.tasks import load_task
from behrt_jax.recipes import large, medium, small
from behrt_jax.report import data_summary
from behrt_jax.training import examples, pretraining
from behrt_jax.training.recipe import Facts, PretrainingRecipe, read_recipe

logger = logging.getLogger(__name__)
TIERS = {"small": small, "medium": medium, "large": large}
EVENT_EDGES = (30.0, 365.0)  # days; any edges serve to count examples


def describe_data(
    data: str | Path, output: str | Path | None = None, *, min_patients: int = 0, prepared_dir: str = "prepared"
) -> Path:
    """Writes `data.html`, a self-contained page about a MEDS data set, and `data.json`, its numbers.

    Args:
      data: the data set; nothing is written there.
      output: the folder to write; `runs/data/` and the name of the data set if None.
      min_patients: numbers of fewer patients are not shown; 0: 1 for data known to be simulated, else 11.
      prepared_dir: the cache of prepared data, as `data.prepared_dir` of a recipe.

    Raises:
      ValueError: the data set cannot be read, or its columns have other types than the standard's.
    """
    try:
        from behrt_jax.report import data_page
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the page needs {error.name}, which is not installed: pip install 'behrt_jax[report]'"
        ) from error
    if min_patients < 0:
        raise ValueError(f"min_patients: found {min_patients}; expected 1 or more, or 0 for the default")
    name, is_synthetic = Path(data).resolve().name, metadata.is_synthetic(data)
    floor = min_patients or find_floor(data)
    recipe = cast(PretrainingRecipe, read_recipe(small.get_config().to_dict()))
    recipe = dataclasses.replace(
        recipe, data=dataclasses.replace(recipe.data, path=str(data), prepared_dir=prepared_dir)
    )
    logger.info(f"reading {data}")
    counts = profile.profile_data(recipe.data)
    summary = data_summary.summarize(counts, metadata.describe_codes(data), floor)
    summary |= {"name": name, "is_synthetic": is_synthetic, "tasks": _check_tasks(str(data), counts, floor)}
    summary |= _check_training(recipe, floor)
    if summary["preparation"]:
        summary["quantiles"]["tokens a train patient"] = summary["preparation"].pop("tokens_a_train_patient")
    summary["baselines"] = _check_baselines(summary, floor, is_simulated(data))
    summary["warnings"] = data_summary.find_warnings(summary)
    folder = Path(output or Path("runs") / "data" / name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False), encoding="utf-8")
    page = folder / "data.html"
    page.write_text(data_page.render(summary), encoding="utf-8")
    for warning in summary["warnings"]:
        logger.info(f"{warning['what']} {warning['do']}")
    logger.info(f"written: {page} and data.json; open the page in any browser")
    return page


def _check_training(recipe: PretrainingRecipe, floor: int) -> dict[str, Any]:
    """Prepares the data and returns the keys `preparation` (None if it is refused) and `objectives`."""
    names = ("mlm", "next_visit", "time_to_event")
    try:
        prepared = prepare(recipe.data)
        train = dataset.read(prepared.folder, "train")
    except ValueError as error:
        logger.warning(f"the data cannot be prepared for training: {error}")
        refused = {"possible": False, "why": "the data cannot be prepared"}
        return {"preparation": None, "objectives": dict.fromkeys(names, refused)}
    objectives = {}
    for name in names:
        objective = dataclasses.replace(recipe.objective, name=name, event_edges=EVENT_EDGES)
        try:
            facts = Facts(len(prepared.vocabulary))
            task = pretraining.make_task(dataclasses.replace(recipe, objective=objective), facts, prepared.vocabulary)
            number = examples.count(task, train, training=True)[name]
            shown = number if min(number, len(train)) >= floor else None
            why = f"{data_summary.show(shown, floor)} {examples.NAMES[name]} in train"
            objectives[name] = {"possible": number > 0, "why": why if number else f"needs {examples.NEEDS[name]}"}
        except ValueError as error:
            objectives[name] = {"possible": False, "why": str(error)}
    return {"preparation": _describe_preparation(prepared, train, floor), "objectives": objectives}


def _describe_preparation(prepared: Prepared, train: dataset.Patients, floor: int) -> dict[str, Any]:
    """Returns the share of `[UNK]`, quantiles of tokens a patient, and what the row of each recipe would cut."""
    counts, rows = prepared.report, {}
    for name, recipe in TIERS.items():
        length, use_sep = recipe.get_config().data.row_length, recipe.get_config().data.use_sep
        index = windows.index_visits(train, length, use_sep)
        cuts = windows.window_report(index, windows.newest_windows(index))
        numbers = [cuts[key] for key in ("patients_cut", "visits_cut", "codes_cut_in_long_visits")]
        enough = data_summary.show_counts({"cut": numbers[0], "whole": cuts["patients"] - numbers[0]}, floor)["cut"]
        keys = ("row_length", "patients_cut", "visits_cut", "codes_cut")
        shown = numbers if enough is not None else [None] * len(numbers)
        rows[name] = dict(zip(keys, [length, *shown], strict=True))
    tokens, unknown = (sum(counts[f"{kind}/{split}"] for split in events.SPLITS) for kind in ("tokens", "unknown"))
    sizes = pl.DataFrame({"subject_id": train.subject_ids, "value": np.diff(train.offsets)})
    return {
        "vocabulary": len(prepared.vocabulary),
        "unknown_share": round(unknown / tokens, 4),
        "tokens_a_train_patient": profile.quantiles(profile.spread("tokens", sizes), floor),
        "rows": rows,
    }


def _check_baselines(summary: dict[str, Any], floor: int, has_oracle: bool) -> dict[str, Any]:
    """Says which baselines the data can carry, from what is shown of it."""
    births, unknown = summary["findings"]["of patients without a birth"]["patients"], summary["sexes"].get("unknown", 0)
    visits, is_prepared = summary["quantiles"]["visits a patient"]["largest"], summary["preparation"] is not None
    total = summary["findings"]["all"]["patients"]
    missing = f"age unknown of {data_summary.show(births, floor)}, sex of {data_summary.show(unknown, floor)} patients"
    return {
        "age and sex": {"possible": births != total, "why": missing},
        "counts of codes (regression, boosting, MLP)": {"possible": is_prepared, "why": "needs prepared data"},
        "the previous visits": {"possible": (visits or 0) > 1, "why": f"needs {examples.NEEDS['next_visit']}"},
        "oracle (exact)": {"possible": has_oracle, "why": "needs patients of experiments.simulate"},
    }


def _check_tasks(data: str, counts: profile.Profile, floor: int) -> dict[str, Any]:
    """Says which of the bundled tasks have their codes in the data, and in how many patients."""
    files = sorted((Path(recipes.__file__).parent / "tasks").glob("*.yaml"))
    codes = {file.stem: find_codes(load_task(file), counts.codes["code"].to_list()) for file in files}
    patients = profile.count_patients(
        data, {f"{task}/{name}": each for task, groups in codes.items() for name, each in groups.items()}
    )
    tasks = {}
    for task, groups in codes.items():
        numbers = {name: patients[f"{task}/{name}"] for name in groups}
        texts = [
            f"{name}: {data_summary.show(number if number == 0 or number >= floor else None, floor)} patients"
            for name, number in numbers.items()
        ]
        tasks[task] = {"possible": all(numbers.values()), "why": "; ".join(texts)}
    return tasks
