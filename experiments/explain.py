"""Explains what a run says of held-out patients, and holds the explanations against the truth where it is known.

python -m experiments.explain --workdir=DIR [--data=DIR] [--compared=50] [--patients=3] [--show_patients]

Of a pre-trained run a code of the last visit, or a masked one, is explained, of a fine-tuned run its outcome. On
simulated data (`experiments.simulate`, `experiments.simulate_outcomes`) the table says how far each method finds what
truly matters. `DIR/attributions.json` has a few example patients; docs/interpretability.md has its structure.
"""

import functools
from pathlib import Path

import numpy as np
from absl import flags

from behrt_jax import metrics, workdir
from behrt_jax.data import dataset, world
from behrt_jax.data.hashing import hash_integers
from experiments import (
    command,
    explain_examples,
    explain_methods,
    explain_timeline,
    explain_truth,
    explained,
    finetuned,
)
from experiments.explained import Case
from experiments.run import Run, load_run, read_simulation
from experiments.simulate_outcomes import TRUTH

MEASURES = {"auroc": "AUROC", "spearman": "rank correlation, sizes", "pearson": "correlation, signed"}


def ask_run(run: Run, most: int) -> tuple[Case, np.ndarray | None]:
    """Asks a pre-trained run about some patients, and the oracle what matters; None where there is none."""
    patients = dataset.sample(run.patients, most)
    index, model, params = run.index(patients), run.trained.model, run.params
    simulated = (run.source / world.WORLD_FILE).exists()
    if "next_visit" in model.objectives:
        visits, targets = explained.last_targets(patients, index, run.trained.is_target)
        case = explained.ask_next_visit(run.config, model, params, patients, index, visits, targets)
    else:
        certain = explain_truth.certain_codes(world.load_world(run.source)) if simulated else ()
        case = explained.ask_masked(model, params, patients, index, ~np.isin(run.vocabulary.tokens, certain))
    if not simulated:
        return case, None
    lives, seen = read_simulation(run.source, run.vocabulary, patients, index)
    return case, explain_truth.oracle_effects(case, lives, seen, index, run.vocabulary.tokens)


def compare(case: Case, truth: np.ndarray, scores: dict[str, np.ndarray], seed: int) -> dict[str, metrics.Outcomes]:
    """Measures each method against the truth, beside what knows nothing of the model."""
    plain = {
        "random": np.random.default_rng(seed).random(truth.shape),
        "nearest first": 1 / (1 + explained.distances(case)),
    }
    return {name: explain_truth.agreement(truth, values, case.owners) for name, values in {**scores, **plain}.items()}


def table(found: dict[str, metrics.Outcomes]) -> str:
    """Lays out a row for each method, with 95% intervals over patients."""
    histories = len(next(iter(found.values())).patients)
    lines = [f"{f'{histories:,} histories':24}" + "".join(f"{label:>26}" for label in MEASURES.values())]
    for name, measured in found.items():
        entries = metrics.summarize(measured, "x")
        cells = [entries[f"x/{measure}"] for measure in MEASURES]
        lines.append(
            f"{name:24}" + "".join(f"{c['value']:10.3f} [{c['low']:.3f}, {c['high']:.3f}]".rjust(26) for c in cells)
        )
    return "\n".join(lines)


def ask_finetuned(own: finetuned.Fitted, most: int, with_truth: bool = True) -> tuple[Case, np.ndarray | None]:
    """Asks a fine-tuned run about held-out histories, and the truth beside its labels what matters."""
    found = own.splits["held_out"]
    order = np.argsort(hash_integers(found.labels.subject_ids, np.arange(len(found.labels))), kind="stable")
    chosen = np.isin(np.arange(len(order)), order[:most])
    found = found._replace(
        labels=found.labels.take(np.flatnonzero(chosen)),
        histories=dataset.take(found.histories, chosen),
        rows=dataset.take(found.rows, chosen),
        traits=found.traits[chosen],
    )
    case = explained.ask_outcome(own.config, own.model, own.params, found)
    file, truth = Path(own.config.labels).with_suffix(TRUTH), None
    if with_truth and file.exists():
        times = found.labels.prediction_times
        truth = explain_truth.hazard_effects(case, found.histories, times, file, own.tokens)
    return case, truth


def report(case: Case, truth: np.ndarray | None, scores: dict[str, np.ndarray], seed: int) -> str:
    """Returns the tables of a case: against the model's own changes, and against the truth where it is known."""
    own = np.where(scores["occlusion"] != 0, scores["occlusion"], np.nan)
    parts = ["against what the same model says without each code", table(compare(case, own, scores, seed))]
    if truth is not None:
        parts += ["against the truth", table(compare(case, truth, scores, seed))]
    return "\n".join(parts)


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    config = workdir.read_config(folder)
    source, number = FLAGS.data or config.data.path, FLAGS.patients
    if number:
        explain_timeline.check_allowed(source, FLAGS.show_patients)
    if "objective" in config:
        run = load_run(folder, "held_out", FLAGS.data, print)
        model, params = run.trained.model, run.params
        if not {"mlm", "next_visit"} & {*model.objectives}:
            raise ValueError(f"--workdir={folder}: was trained on events alone; expected masked codes or next visits")
        make = explain_examples.next_visits if "next_visit" in model.objectives else explain_examples.masked_codes
        ask, examples = functools.partial(ask_run, run), functools.partial(make, run)
    else:
        own = finetuned.load(folder, None, print)
        model, params = own.model, own.params
        ask = functools.partial(ask_finetuned, own)
        make = functools.partial(explain_examples.outcomes, folder, own)
        examples = lambda number: make(ask_finetuned(own, number, False)[0], number, source, print)  # noqa: E731
    if FLAGS.compared:
        case, truth = ask(FLAGS.compared)
        print(report(case, truth, explain_methods.explain(case, model, params, print), FLAGS.seed))
    if number:
        kind = "outcome" if "objective" not in config else "next_visit" if "next_visit" in model.objectives else "mlm"
        print(f"written: {explain_examples.write(folder, kind, source, examples(number))}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("data", None, "Another MEDS data set, such as a simulated one, for a pre-trained run.")
    flags.DEFINE_integer("compared", 50, "Held-out patients by whom methods are compared; 0 for none.", lower_bound=0)
    flags.DEFINE_integer("patients", 3, "Example patients to write; 0 for none.", lower_bound=0)
    flags.DEFINE_bool("show_patients", False, "Write example patients of data that is not known to be synthetic.")
    flags.DEFINE_integer("seed", 0, "Of the random scores to compare with.", lower_bound=0)
    command.run(main)
