"""Checkpoints: Orbax steps, the newest two and the best kept; a damaged one gives way to the one before."""

import functools
import json
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from behrt_jax.training.state import TrainState

NEWEST_KEPT = 2
FILES = "files.json"  # the size of each file of a step, to tell a damaged one before Orbax stumbles over it


class Checkpoints:
    """The checkpoints of a workdir.

    Attributes:
      folder: where Orbax keeps one folder a step.
      metric: the name of the tuning metric by which the best is chosen; lower is better.
    """

    def __init__(self, folder: Path, metric: str):
        """Opens the folder, and makes it if there is none."""
        self.folder, self.metric = Path(folder).resolve(), metric
        for name in ("absl", "asyncio"):  # Orbax tells of every file; its errors are raised as well
            logging.getLogger(name).setLevel(logging.CRITICAL)
        _quiet_threads()
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
        """Saves a state under its step, with tuning metrics where there are some.

        A state whose `opt_state` is None is saved as parameters alone: to be loaded, not to go on from.

        Raises:
          OSError: it could not be written; the checkpoints before it stay.
        """
        parts = {"params": state.params}
        if state.opt_state is not None:
            parts["rest"] = {"step": state.step, "opt_state": state.opt_state}
        items = ocp.args.Composite(**{name: ocp.args.StandardSave(part) for name, part in parts.items()})
        step = int(state.step)
        try:
            self._manager.save(step, args=items, metrics=metrics)
        except Exception as error:  # Orbax and its stores raise many kinds for a full disk
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"
            raise OSError(
                f"{self.folder}: checkpoint {step} could not be written; free some space ({reason})"
            ) from error
        self.record_sizes(step)

    def record_sizes(self, step: int) -> None:
        """Notes the size of each file of a step, by which damage is told."""
        (self.folder / str(step) / FILES).write_text(json.dumps(self._list_files(step)))

    def best(self) -> tuple[int, dict[str, float]] | None:
        """Returns the step of lowest tuning loss and its metrics; None where none was evaluated."""
        step = self._manager.best_step()
        return None if step is None else (step, dict(self._manager.metrics(step)))

    def restore_newest(self, like: TrainState, warn: Callable[[str], None]) -> TrainState | None:
        """Restores the newest state that can be read; None where there is none.

        Damaged checkpoints after it are removed, so that the run which goes on from it can save those steps again.

        Args:
          like: a state, or its shapes, that the restored one must equal in structure.
          warn: called with a line for each checkpoint passed over.

        Raises:
          ValueError: there are checkpoints but none can be read, or they are of another model.
        """
        rest = {"step": like.step, "opt_state": like.opt_state}
        found = self._restore(list(reversed(self.steps())), {"params": like.params, "rest": rest}, warn)
        if found is None:
            return None
        state = TrainState(found["rest"]["step"], found["params"], found["rest"]["opt_state"])
        for step in self.steps():
            if step > state.step:
                self._manager.delete(step)
        # Training donates the state; memory that restored arrays share must not be (under jax 0.5.0 it crashes).
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)

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
        target = jax.tree.map(_placed, like)
        items = ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in target.items()})
        for step in steps:
            damage = self._find_damage(step)
            if damage is None:
                if mismatch := shape_mismatch(self._stored_shapes(step), like["params"]):
                    place = self.folder / str(step)
                    raise ValueError(f"{place}: {mismatch}; the checkpoint belongs to another model config")
                try:
                    return dict(self._manager.restore(step, args=items).items())
                except Exception as error:  # Orbax and its stores raise many kinds for a damaged file
                    damage = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            warn(f"checkpoint {step} in {self.folder} cannot be read and is passed over for another ({damage})")
        if steps:
            raise ValueError(
                f"{self.folder}: none of the checkpoints {steps} can be read; train anew in another workdir"
            )
        return None

    def _list_files(self, step: int) -> dict[str, int]:
        root = self.folder / str(step)
        files = sorted(file for file in root.rglob("*") if file.is_file() and file.name != FILES)
        return {str(file.relative_to(root)): file.stat().st_size for file in files}

    def _find_damage(self, step: int) -> str | None:
        """Says which file of a checkpoint is missing or cut short; None where all is well or nothing is known."""
        try:
            listed = json.loads((self.folder / str(step) / FILES).read_text())
        except (OSError, ValueError):  # a kill came before it was written
            return None
        found = self._list_files(step)
        for name, size in listed.items():
            if found.get(name) != size:
                return f"{name} has {found[name]} bytes, expected {size}" if name in found else f"{name} is missing"
        return None

    def _stored_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each parameter as its metadata tells; empty where that is damaged too."""
        try:
            with ocp.StandardCheckpointer() as reader:
                stored = reader.metadata(self.folder / str(step) / "params")
        except Exception:  # as in `_restore`
            return {}
        tree = getattr(stored, "item_metadata", stored)  # newer versions of Orbax wrap the tree
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


@functools.cache  # once a process
def _quiet_threads() -> None:
    """Hides what threads of Orbax print, even later, about an error that it raises in the caller's thread as well."""
    show_thread, show_ignored = threading.excepthook, sys.unraisablehook

    def of_thread(arguments):
        if not type(arguments.thread).__module__.startswith("orbax"):
            show_thread(arguments)

    def of_callback(arguments):
        if str(arguments.exc_value) != "Event loop is closed":
            show_ignored(arguments)

    threading.excepthook, sys.unraisablehook = of_thread, of_callback


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape, type and device of an array; shapes without a device go to the first, wherever they were saved."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def shape_mismatch(found: dict[str, tuple[int, ...]], like: Any) -> str | None:
    """Names the first parameter whose shape is not that of `like`, or None; nothing found is no mismatch."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = jax.tree_util.keystr(path)
        if found and found.get(name) != leaf.shape:
            return f"{name} has shape {found.get(name, 'none')}, expected {leaf.shape}"
    return None
