"""Explains predictions for held-out patients, and compares the explanations with the truth if it is known."""

from pathlib import Path

import numpy as np

from behrt_jax.data import dataset
from behrt_jax.data.hashing import hash_integers
from behrt_jax.evaluation.loaded_run import Run, read_simulation
from behrt_jax.finetuning import finetuned
from behrt_jax.interpret import cases, ground_truth
from behrt_jax.interpret.cases import AttributionCase
from behrt_jax.metrics import bootstrap
from behrt_jax.simulation import world
from behrt_jax.simulation.outcome_files import TRUTH_SUFFIX

MEASURES = {"auroc": "AUROC", "spearman": "rank correlation, sizes", "pearson": "correlation, signed"}


def ask_run(run: Run, most: int) -> tuple[AttributionCase, np.ndarray | None]:
    """Returns a case of some patients of a pre-trained run, and the oracle's effects; None if not simulated."""
    patients = dataset.sample(run.patients, most)
    index, model, params = run.index(patients), run.task.model, run.params
    simulated = (run.source / world.WORLD_FILE).exists()
    if "next_visit" in model.objectives:
        visits, targets = cases.last_targets(patients, index, run.task.is_target)
        case = cases.make_next_visit_case(run.task, params, patients, index, visits, targets)
    else:
        certain = ground_truth.certain_codes(world.load_world(run.source)) if simulated else ()
        case = cases.make_masked_code_case(model, params, patients, index, ~np.isin(run.vocabulary.tokens, certain))
    if not simulated:
        return case, None
    lives, seen = read_simulation(run.source, run.vocabulary, patients, index)
    return case, ground_truth.oracle_effects(case, lives, seen, index, run.vocabulary.tokens)


def compare(
    case: AttributionCase, truth: np.ndarray, scores: dict[str, np.ndarray], seed: int
) -> dict[str, bootstrap.PerTargetScores]:
    """Measures each method against the truth, with baselines that do not use the model."""
    baselines = {
        "random": np.random.default_rng(seed).random(truth.shape),
        "nearest first": 1 / (1 + cases.distances(case)),
    }
    return {
        name: ground_truth.agreement(truth, values, case.owners) for name, values in {**scores, **baselines}.items()
    }


def table(found: dict[str, bootstrap.PerTargetScores]) -> str:
    """Formats a row for each method, with 95% intervals over patients."""
    histories = len(next(iter(found.values())).patients)
    if not histories:
        return (
            f"no history to compare: expected {2 * ground_truth.TOP} codes or more, {ground_truth.TOP} of them with an "
            "effect. No code has one where fine-tuning kept its initial head, which reads age and sex alone"
        )
    lines = [f"{f'{histories:,} histories':24}" + "".join(f"{label:>26}" for label in MEASURES.values())]
    for name, scores in found.items():
        entries = bootstrap.summarize(scores, "x")
        cells = [entries[f"x/{measure}"] for measure in MEASURES]
        lines.append(
            f"{name:24}" + "".join(f"{c['value']:10.3f} [{c['low']:.3f}, {c['high']:.3f}]".rjust(26) for c in cells)
        )
    return "\n".join(lines)


def ask_finetuned(
    own: finetuned.FinetunedModel, most: int, with_truth: bool = True
) -> tuple[AttributionCase, np.ndarray | None]:
    """Returns a case of held-out histories of a fine-tuned run, and the true effects; None if not known."""
    held_out = own.splits["held_out"]
    order = np.argsort(hash_integers(held_out.labels.subject_ids, np.arange(len(held_out.labels))), kind="stable")
    is_chosen = np.isin(np.arange(len(order)), order[:most])
    held_out = held_out._replace(
        labels=held_out.labels.take(np.flatnonzero(is_chosen)),
        histories=dataset.take(held_out.histories, is_chosen),
        model_inputs=dataset.take(held_out.model_inputs, is_chosen),
        covariates=held_out.covariates[is_chosen],
    )
    case = cases.make_outcome_case(own, held_out)
    file, truth = Path(own.recipe.labels).with_suffix(TRUTH_SUFFIX), None
    if with_truth and file.exists():
        times = held_out.labels.prediction_times
        truth = ground_truth.hazard_effects(case, held_out.histories, times, file, own.tokens)
    return case, truth


def report(case: AttributionCase, truth: np.ndarray | None, scores: dict[str, np.ndarray], seed: int) -> str:
    """Formats the tables of a case: agreement with the model's own changes, and with the truth if it is known."""
    model_effects = np.where(scores["occlusion"] != 0, scores["occlusion"], np.nan)
    parts = ["against what the same model says without each code", table(compare(case, model_effects, scores, seed))]
    if truth is not None:
        parts += ["against the truth", table(compare(case, truth, scores, seed))]
    return "\n".join(parts)
