"""Evaluation: held-out metrics of a run and its baselines."""

from collections.abc import Sequence
from pathlib import Path

from behrt_jax.evaluation import outcomes, pretrained
from behrt_jax.evaluation.comparison import Comparison
from behrt_jax.evaluation.small_cells import drop_small, find_floor
from behrt_jax.plots.pretraining import draw_pretraining
from behrt_jax.training import config_file
from behrt_jax.training.recipe import PRETRAINING


def evaluate(
    workdir: str | Path,
    *,
    split: str = "held_out",
    data: str | None = None,
    compare_to: Sequence[str | Path] = (),
    baselines: bool = True,
    figures: bool = False,
) -> Comparison:
    """Scores the best checkpoint of a workdir and baselines on the same targets, and writes `evaluation.json`.

    Args:
      workdir: written by `pretrain` or `finetune`.
      split: `train`, `tuning` or `held_out`; only `held_out` for a fine-tuned run.
      data: another MEDS data set to score a pre-trained run on; the run's own if None.
      compare_to: workdirs of other runs on the same data, and for a fine-tuned run on the same labels.
      baselines: whether to fit baselines; they take some minutes.
      figures: whether to draw figures of a pre-trained run; those of a fine-tuned one are always drawn. Of real
        patients only what rests on `small_cells.MIN_PATIENTS` patients or more is drawn.

    Raises:
      ValueError: the workdir cannot be read, or something does not apply to its kind of run.
    """
    folder, others = Path(workdir), [str(other) for other in compare_to]
    recipe, _ = config_file.read(folder)
    if recipe.kind == PRETRAINING:
        result = pretrained.evaluate_run(folder, split, data, others, baselines)
        if not figures:
            return result
        shown, _ = drop_small(result.to_dict(), find_floor(data or recipe.data.path))
        return result._replace(figures=tuple(draw_pretraining(folder, shown)))
    if data or split != "held_out":
        flag = f"--data={data}" if data else f"--split={split}"
        raise ValueError(
            f"{flag}: {folder} is fine-tuned, which is evaluated on the held-out patients of its own data; "
            "expected neither --data nor --split: for other patients use experiments.predict"
        )
    return outcomes.evaluate_run(folder, compare_to=others, with_baselines=baselines)
