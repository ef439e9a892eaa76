"""Checkpoints: Orbax steps, the newest two and the best kept; a damaged one gives way to the one before."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from behrt_jax.state import TrainState

NEWEST_KEPT = 2


class Checkpoints:
    """The checkpoints of a workdir.

    Attributes:
      folder: where Orbax keeps one folder a step.
      metric: the name of the tuning metric by which the best is chosen; lower is better.
    """

    def __init__(self, folder: Path, metric: str):
        """Opens the folder, and makes it if there is none."""
        self.folder, self.metric = Path(folder).resolve(), metric
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every file it opens
        keep = [
            preservation_policy.LatestN(NEWEST_KEPT),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics[metric], reverse=True, n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(keep),
            best_fn=lambda metrics: metrics[metric],
            best_mode="min",
            enable_async_checkpointing=False,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Saves a state under its step, with tuning metrics where there are some."""
        rest = {"step": state.step, "opt_state": state.opt_state}
        items = ocp.args.Composite(params=ocp.args.StandardSave(state.params), rest=ocp.args.StandardSave(rest))
        self._manager.save(int(state.step), args=items, metrics=metrics)

    def restore_newest(self, like: TrainState, warn: Callable[[str], None]) -> TrainState | None:
        """Restores the newest state that can be read; None where there is none.

        Args:
          like: a state, or its shapes, that the restored one must equal in structure.
          warn: called with a line for each checkpoint passed over.

        Raises:
          ValueError: there are checkpoints but none can be read, or they are of another model.
        """
        rest = {"step": like.step, "opt_state": like.opt_state}
        found = self._restore(list(reversed(self.steps())), {"params": like.params, "rest": rest}, warn)
        return found and TrainState(found["rest"]["step"], found["params"], found["rest"]["opt_state"])

    def restore_best(self, like: Any, warn: Callable[[str], None]) -> Any | None:
        """Restores the parameters of lowest tuning loss; the newest where none was evaluated or the best is damaged.

        Args:
          like: parameters, or their shapes.
          warn: called with a line for each checkpoint passed over.

        Raises:
          ValueError: as `restore_newest`.
        """
        newest_first = list(reversed(self.steps()))
        best = self._manager.best_step()
        order = newest_first if best is None else [best, *(step for step in newest_first if step != best)]
        found = self._restore(order, {"params": like}, warn)
        return found and found["params"]

    def _restore(self, steps: list[int], like: dict, warn) -> Any | None:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        items = ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in target.items()})
        for step in steps:
            try:
                restored = dict(self._manager.restore(step, args=items).items())
            except Exception as error:  # Orbax and its stores raise many kinds for a damaged file
                reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                warn(f"checkpoint {step} in {self.folder} cannot be read, so the one before is taken ({reason})")
                continue
            if mismatch := shape_mismatch(restored, like):
                raise ValueError(
                    f"{self.folder / str(step)}: {mismatch}; the checkpoint belongs to another model config"
                )
            return restored
        if steps:
            raise ValueError(
                f"{self.folder}: none of the checkpoints {steps} can be read; train anew in another workdir"
            )
        return None

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def shape_mismatch(restored: Any, like: Any) -> str | None:
    """Names the first parameter whose shape differs, or None."""
    found = jax.tree_util.tree_leaves_with_path(restored)
    expected = jax.tree.leaves(like)
    for (path, leaf), other in zip(found, expected, strict=True):
        if leaf.shape != other.shape:
            return f"{jax.tree_util.keystr(path)} has shape {leaf.shape}, expected {other.shape}"
    return None
