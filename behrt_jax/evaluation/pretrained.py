"""Held-out metrics of a pre-trained model and its baselines."""

import logging
from collections.abc import Sequence
from pathlib import Path

from behrt_jax.evaluation import comparison, tables
from behrt_jax.evaluation.comparison import Comparison
from behrt_jax.evaluation.loaded_run import check_comparable, load_run
from behrt_jax.evaluation.masked_codes import score_masked
from behrt_jax.evaluation.next_visit import score_next_visits
from behrt_jax.evaluation.time_to_event import score_events
from behrt_jax.evaluation.values import score_values
from behrt_jax.training import digests, examples

logger = logging.getLogger(__name__)
SECTIONS = {
    "mlm": score_masked,
    "value": score_values,
    "next_visit": score_next_visits,
    "time_to_event": score_events,
}


def evaluate_run(
    folder: Path,
    split: str,
    data: str | None = None,
    compare_to: Sequence[str] = (),
    with_baselines: bool = True,
) -> Comparison:
    """Evaluates the best checkpoint of a workdir and the baselines on the same targets, and writes the result.

    Args:
      folder: the workdir.
      split: `train`, `tuning` or `held_out`.
      data: another MEDS data set to score on, with the model's vocabulary; the run's own if None.
      compare_to: workdirs of other runs on the same data, scored as further baselines.
      with_baselines: whether to fit baselines.
    """
    run = load_run(folder, split, data)
    others = {name: load_run(Path(name), split, data) for name in compare_to}
    for name, other in others.items():
        check_comparable(run, other, name)
    about = {"split": split, "patients": len(run.patients), "train_patients": len(run.train)}
    about |= {"evaluated": digests.of_evaluation(folder, run.digests, run.patients)}
    about |= {} if data is None else {"data": Path(data).name}
    parts, counts = [Comparison(about)], examples.count(run.task, run.patients)
    for name in counts:
        if not counts[name]:
            logger.info(
                f"{tables.TITLES[name]}: not scored, as {len(run.patients):,} patients have no {examples.NAMES[name]}"
            )
            continue
        comparable = {key: other for key, other in others.items() if name in examples.predicted(other.task)}
        parts.append(SECTIONS[name](run, comparable, with_baselines))
    result = comparison.join(parts)
    comparison.write(folder, result)
    return result
