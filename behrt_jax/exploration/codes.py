"""Evaluation of code embeddings: nearest neighbours, and how often they share a group."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np

from behrt_jax.data import code_counts, dataset, windows
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.embeddings import codes as code_embeddings
from behrt_jax.evaluation.tables import format_cell, format_signed
from behrt_jax.exploration import code_groups
from behrt_jax.metrics import bootstrap
from behrt_jax.training import workdir
from behrt_jax.training.recipe import PRETRAINING
from behrt_jax.training.workdir import CODE_EMBEDDINGS_FILE

logger = logging.getLogger(__name__)
OWN = "this run"
MOST_MATCHES = 5


def show_neighbours(loaded: workdir.LoadedRun, descriptions: list[str], query: str, k: int) -> str:
    """Formats the nearest neighbours of the codes that match a query, or of the most frequent ones if many match."""
    vocabulary = loaded.vocabulary
    matches = code_embeddings.find_codes(query, vocabulary, descriptions)
    shown = matches[:MOST_MATCHES]
    lines = [f"{len(matches)} codes match; the {len(shown)} most frequent:"] if len(matches) > len(shown) else []
    ids, cosines = code_embeddings.nearest(code_embeddings.code_table(loaded.params), shown, k)
    for code, neighbours, similarities in zip(shown, ids, cosines, strict=True):
        patients = f"{vocabulary.patients[code - NUM_SPECIAL]:,} train patients"
        lines += ["", " ".join(filter(None, (vocabulary.tokens[code], descriptions[code], f"({patients})")))]
        width = max(len(vocabulary.tokens[place]) for place in neighbours)
        for place, cosine in zip(neighbours, similarities, strict=True):
            lines.append(f"  {cosine:6.3f}  {vocabulary.tokens[place]:{width}}  {descriptions[place]}".rstrip())
    return "\n".join(lines)


def make_tables(loaded: workdir.LoadedRun, data: str) -> dict[str, np.ndarray]:
    """Returns the code tables of the run and of baselines of the same width, some of them fitted to train patients.

    Omits the fitted ones, with a message, if the data is missing or gives another vocabulary than the run has.
    """
    recipe, _, vocabulary, model, params = loaded
    run_table = code_embeddings.code_table(params)
    random_params = jax.jit(lambda key: workdir.initialize(model, key))(jax.random.key(recipe.seed))
    tables = {OWN: run_table, "untrained": code_embeddings.code_table(random_params)}
    if not Path(data).is_dir():
        logger.info(f"{data}: not here, so there are no baselines from it and no descriptions; give --data=DIR")
        return tables
    prepared = prepare(dataclasses.replace(recipe.data, path=data))
    if prepared.vocabulary.fingerprint != vocabulary.fingerprint:
        logger.info(f"{data}: gives another vocabulary than the run was trained with, so no baselines are fitted on it")
        return tables
    max_patients = recipe.train.max_patients if recipe.kind == PRETRAINING else 0
    train = dataset.sample(dataset.read(prepared.folder, "train"), max_patients)
    index = windows.index_visits(train, recipe.data.row_length, recipe.data.use_sep)
    tables["PPMI-SVD"] = code_embeddings.ppmi_svd(
        code_counts.visit_codes(train, index, len(run_table)), run_table.shape[1]
    )
    return tables


def measure(tables: dict[str, np.ndarray], groups: dict[str, np.ndarray], k: int) -> dict[str, dict]:
    """Measures how often neighbours share each kind of group: for the run, at chance, and for the other tables."""
    result = {}
    for name, labels in groups.items():
        scores = {label: code_embeddings.agreement(table, labels, k) for label, table in tables.items()}
        run_scores, chance = scores.pop(OWN), code_embeddings.chance(labels)
        result[name] = {"codes": len(run_scores.patients), "groups": len(np.unique(run_scores.patients))}
        result[name] |= bootstrap.report(run_scores, {"chance": chance, **scores}, "codes")
    return result


def format_agreement(result: dict[str, dict], k: int) -> str:
    """Formats the result of `measure` as text."""
    names = [OWN, *next(iter(result.values()))["baselines"]]
    width = max(map(len, result)) + 2
    lines = [f"share of the {k} nearest codes that are of the same group, 95% intervals over groups", ""]
    lines.append(" " * width + "codes  groups" + "".join(name.rjust(24) for name in names))
    for kind, entry in result.items():
        metrics = {OWN: entry["metrics"], **entry["baselines"]}
        cells = (format_cell(metrics[name]["codes/precision"]).rjust(24) for name in names)
        lines.append(f"{kind:{width}}{entry['codes']:5}{entry['groups']:8}" + "".join(cells))
    lines += ["", f"difference of {OWN} to each"]
    for kind, entry in result.items():
        cells = (format_signed(entry["versus"][name]["codes/precision"]).rjust(24) for name in names[1:])
        lines.append(f"{kind:{width}}" + " " * 37 + "".join(cells))
    return "\n".join(lines)


def list_neighbours(loaded: workdir.LoadedRun, descriptions: list[str], groups: dict[str, np.ndarray], k: int) -> dict:
    """Returns each code's description, number of train patients and neighbours, as JSON-serialisable values."""
    vocabulary, codes = loaded.vocabulary, range(NUM_SPECIAL, len(loaded.vocabulary))
    ids, cosines = code_embeddings.nearest(code_embeddings.code_table(loaded.params), [*codes], k)
    return {
        vocabulary.tokens[code]: {
            "description": descriptions[code],
            "patients": vocabulary.patients[code - NUM_SPECIAL],
            "groups": {name: int(labels[code]) for name, labels in groups.items() if labels[code] >= 0},
            "neighbours": [
                {"code": vocabulary.tokens[place], "cosine": round(float(cosine), 4)}
                for place, cosine in zip(neighbours, similarities, strict=True)
            ],
        }
        for code, neighbours, similarities in zip(codes, ids, cosines, strict=True)
    }


def write_report(folder: Path, loaded: workdir.LoadedRun, data: str, descriptions: list[str], k: int, diseases: str):
    """Measures agreement, prints it, and writes it with all neighbours to the workdir atomically."""
    groups = code_groups.find_groups(loaded.vocabulary, descriptions, data, diseases)
    result = measure(make_tables(loaded, data), groups, k) if groups else {}
    logger.info(
        format_agreement(result, k) if groups else f"{data}: no two codes share a group; agreement is not measured"
    )
    content = {"neighbours": k, "agreement": result, "codes": list_neighbours(loaded, descriptions, groups, k)}
    scratch = folder / f"{CODE_EMBEDDINGS_FILE}.tmp"
    scratch.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    scratch.replace(folder / CODE_EMBEDDINGS_FILE)
    logger.info(f"written: {folder / CODE_EMBEDDINGS_FILE}")
