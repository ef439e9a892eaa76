"""Held-out metrics of a trained model beside its baselines, printed and written to `evaluation.json`.

python -m experiments.evaluate --workdir=DIR [--versus=DIR] [--data=DIR] [--split=held_out] [--nobaselines] [--plots]

Of a fine-tuned model always the held-out patients, with figures, and `--versus=DIR,DIR` may name several runs.
"""

import json
from collections.abc import Callable
from pathlib import Path

from absl import flags

from behrt_jax import workdir
from behrt_jax.data import events
from experiments import command, evaluate_outcomes, examples, inputs, plots, tables
from experiments.evaluate_events import score_events
from experiments.evaluate_masked import score_masked
from experiments.evaluate_next_visit import score_next_visits
from experiments.fitting import EVALUATION_FILE
from experiments.run import check_comparable, load_run

SECTIONS = {"mlm": score_masked, "next_visit": score_next_visits, "time_to_event": score_events}


def evaluate_run(
    folder: Path,
    split: str,
    data: str | None = None,
    versus: str | None = None,
    with_baselines: bool = True,
    say: Callable[[str], None] = print,
) -> dict:
    """Scores the best checkpoint of a workdir and the baselines on the same targets, and writes the result.

    Args:
      folder: the workdir.
      split: `train`, `tuning` or `held_out`.
      data: another MEDS data set to score on, with the model's vocabulary; the run's own if None.
      versus: the workdir of another run of the same data, scored as one more baseline.
      with_baselines: whether to fit baselines.
      say: takes lines on what is going on.

    Returns:
      `{"split", "patients", "train_patients", "evaluated", "metrics": {NAME: ENTRY}, "baselines": {BASELINE: {NAME:
      ENTRY}}, "versus": {BASELINE: {NAME: {"value", "low", "high"}}}}` with ENTRY `{"value", "low", "high", "n",
      "patients"}`, where `versus` has the differences to each baseline, `n` counts what was measured and an entry's
      `patients` whose it is, and `evaluated` is a digest of what was scored (`inputs.of_evaluation`); with `data` its
      folder's name, and for simulated data `oracle`.
    """
    run = load_run(folder, split, data, say)
    other = None if versus is None else load_run(Path(versus), split, data, say)
    if other is not None:
        check_comparable(run, other, str(versus))
    result = {"split": split, "patients": len(run.patients), "train_patients": len(run.train)}
    result |= {"evaluated": inputs.of_evaluation(folder, run.digests, run.patients)}
    result |= {} if data is None else {"data": Path(data).name}
    result |= {"metrics": {}, "baselines": {}, "versus": {}}
    counts = examples.count(run.config, run.trained.model, run.vocabulary, run.trained.is_target, run.patients)
    for name in run.trained.model.objectives:
        if not counts[name]:
            say(f"{tables.TITLES[name]}: not scored, as {len(run.patients):,} patients have no {examples.NAMES[name]}")
            continue
        shared = other if other is not None and name in other.trained.model.objectives else None
        section = SECTIONS[name](run, shared, with_baselines)
        result["metrics"] |= section["metrics"]
        for part in ("baselines", "versus"):
            for baseline, found in section[part].items():
                label = versus if baseline == "other run" else baseline
                result[part][label] = {**result[part].get(label, {}), **found}
        if "oracle" in section:
            result["oracle"] = {**result.get("oracle", {}), **section["oracle"]}
    scratch = folder / f"{EVALUATION_FILE}.tmp"
    scratch.write_text(json.dumps(result, indent=1))
    scratch.replace(folder / EVALUATION_FILE)
    return result


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    is_pretrained = "objective" in workdir.read_config(folder)
    if is_pretrained:
        result = evaluate_run(folder, FLAGS.split, FLAGS.data, FLAGS.versus, FLAGS.baselines)
    else:
        if FLAGS.data or FLAGS.split != "held_out":
            given = f"--data={FLAGS.data}" if FLAGS.data else f"--split={FLAGS.split}"
            raise ValueError(
                f"{given}: {folder} is fine-tuned, which is evaluated on the held-out patients of its own data; "
                "expected neither --data nor --split: for other patients use experiments.predict"
            )
        versus = FLAGS.versus.split(",") if FLAGS.versus else []
        result = evaluate_outcomes.evaluate_run(folder, versus=versus, with_baselines=FLAGS.baselines)
    print(tables.format_result(result))
    print(f"written: {folder / EVALUATION_FILE}")
    if FLAGS.plots and is_pretrained:
        for file in plots.draw(folder, FLAGS.split, FLAGS.data):
            print(f"written: {file}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_string("versus", None, "The workdir of another run of the same data, to compare with.")
    flags.DEFINE_string("data", None, "Another MEDS data set to score on; default: the run's own.")
    flags.DEFINE_enum("split", "held_out", events.SPLITS, "Which patients to score.")
    flags.DEFINE_bool("baselines", True, "Fit baselines; they take some minutes.")
    flags.DEFINE_bool("plots", False, "Also write figures: learning curve, reliability, precision and recall.")
    command.run(main)
