"""Held-out metrics of a pre-trained model and its baselines."""

import json
import logging
from pathlib import Path

from behrt_jax.evaluation import tables
from behrt_jax.evaluation.loaded_run import check_comparable, load_run
from behrt_jax.evaluation.masked_codes import score_masked
from behrt_jax.evaluation.next_visit import score_next_visits
from behrt_jax.evaluation.time_to_event import score_events
from behrt_jax.training import digests, examples
from behrt_jax.training.workdir import EVALUATION_FILE

logger = logging.getLogger(__name__)
SECTIONS = {"mlm": score_masked, "next_visit": score_next_visits, "time_to_event": score_events}


def evaluate_run(
    folder: Path, split: str, data: str | None = None, compare_to: str | None = None, with_baselines: bool = True
) -> dict:
    """Evaluates the best checkpoint of a workdir and the baselines on the same targets, and writes the result.

    Args:
      folder: the workdir.
      split: `train`, `tuning` or `held_out`.
      data: another MEDS data set to score on, with the model's vocabulary; the run's own if None.
      compare_to: the workdir of another run on the same data, scored as one more baseline.
      with_baselines: whether to fit baselines.

    Returns:
      `{"split", "patients", "train_patients", "evaluated", "metrics": {NAME: ENTRY}, "baselines": {BASELINE: {NAME:
      ENTRY}}, "versus": {BASELINE: {NAME: {"value", "low", "high"}}}}` with ENTRY `{"value", "low", "high", "n",
      "patients"}`. `versus` holds the differences to each baseline; in an entry, `n` counts the measured targets and
      `patients` their patients; `evaluated` is a digest of the inputs (`digests.of_evaluation`). With `data` there is
      also its folder's name, and for simulated data `oracle`.
    """
    run = load_run(folder, split, data)
    other = None if compare_to is None else load_run(Path(compare_to), split, data)
    if other is not None:
        check_comparable(run, other, str(compare_to))
    result = {"split": split, "patients": len(run.patients), "train_patients": len(run.train)}
    result |= {"evaluated": digests.of_evaluation(folder, run.digests, run.patients)}
    result |= {} if data is None else {"data": Path(data).name}
    result |= {"metrics": {}, "baselines": {}, "versus": {}}
    counts = examples.count(run.task, run.patients)
    for name in run.task.model.objectives:
        if not counts[name]:
            logger.info(
                f"{tables.TITLES[name]}: not scored, as {len(run.patients):,} patients have no {examples.NAMES[name]}"
            )
            continue
        compared_run = other if other is not None and name in other.task.model.objectives else None
        section = SECTIONS[name](run, compared_run, with_baselines)
        result["metrics"] |= section["metrics"]
        for part in ("baselines", "versus"):
            for baseline, entries in section[part].items():
                label = compare_to if baseline == "other run" else baseline
                result[part][label] = {**result[part].get(label, {}), **entries}
        if "oracle" in section:
            result["oracle"] = {**result.get("oracle", {}), **section["oracle"]}
    scratch = folder / f"{EVALUATION_FILE}.tmp"
    scratch.write_text(json.dumps(result, indent=1))
    scratch.replace(folder / EVALUATION_FILE)
    return result
