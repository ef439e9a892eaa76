"""Evaluation: held-out metrics of a run and its baselines."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from behrt_jax.evaluation import outcomes, plots, pretrained, tables
from behrt_jax.training import config_file
from behrt_jax.training.recipe import PRETRAINING


class Evaluation(NamedTuple):
    """The result of an evaluation.

    Attributes:
      values: the content of `evaluation.json`; see `evaluation.pretrained.evaluate_run`.
      figures: the files drawn.
    """

    values: dict
    figures: list[Path]

    def table(self) -> str:
        """Formats the metrics of the run and the baselines as text."""
        return tables.format_result(self.values)


def evaluate(
    workdir: str | Path,
    *,
    split: str = "held_out",
    data: str | None = None,
    compare_to: Sequence[str] = (),
    baselines: bool = True,
    figures: bool = False,
) -> Evaluation:
    """Scores the best checkpoint of a workdir and baselines on the same targets, and writes `evaluation.json`.

    Args:
      workdir: written by `pretrain` or `finetune`.
      split: `train`, `tuning` or `held_out`; only `held_out` for a fine-tuned run.
      data: another MEDS data set to score a pre-trained run on; the run's own if None.
      compare_to: workdirs of other runs on the same data, to compare with; at most one for a pre-trained run.
      baselines: whether to fit baselines; they take some minutes.
      figures: whether to draw figures of a pre-trained run; those of a fine-tuned one are always drawn.

    Raises:
      ValueError: the workdir cannot be read, or something does not apply to its kind of run.
    """
    folder = Path(workdir)
    if config_file.read(folder)[0].kind == PRETRAINING:
        if len(compare_to) > 1:
            raise ValueError(f"--compare_to={','.join(compare_to)}: {folder} is pre-trained; expected one other run")
        other = compare_to[0] if compare_to else None
        values = pretrained.evaluate_run(folder, split, data, other, baselines)
        return Evaluation(values, list(plots.draw(folder, split, data)) if figures else [])
    if data or split != "held_out":
        flag = f"--data={data}" if data else f"--split={split}"
        raise ValueError(
            f"{flag}: {folder} is fine-tuned, which is evaluated on the held-out patients of its own data; "
            "expected neither --data nor --split: for other patients use experiments.predict"
        )
    values = outcomes.evaluate_run(folder, compare_to=list(compare_to), with_baselines=baselines)
    return Evaluation(values, sorted((folder / "figures").glob("*")))
