"""Orbax checkpoints: keeps the two newest and the best one, and falls back to another if one is damaged."""

import functools
import logging
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from behrt_jax.data import checksums
from behrt_jax.models import devices
from behrt_jax.training.state import TrainState

logger = logging.getLogger(__name__)
NEWEST_KEPT = 2


class Checkpoints:
    """The checkpoints of a workdir.

    Attributes:
      folder: where Orbax keeps one folder per step.
      metric: the name of the tuning metric that selects the best checkpoint; lower is better.
    """

    def __init__(self, folder: Path, metric: str):
        """Remembers the folder."""
        self.folder, self.metric = Path(folder).resolve(), metric

    @functools.cached_property
    def _manager(self):
        """Opens the folder, or creates it, at first use: training starts before Orbax is imported.

        Raises:
          ValueError: the metrics of a checkpoint are damaged; the message names the file.
        """
        from orbax.checkpoint.checkpoint_managers import preservation_policy

        ocp = _import_orbax()
        policies = [
            preservation_policy.LatestN(NEWEST_KEPT),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics[self.metric],
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=lambda metrics: metrics[self.metric],
            best_mode="min",
            enable_async_checkpointing=False,
        )
        try:
            manager = ocp.CheckpointManager(self.folder, options=options)
            manager.best_step()  # reads the metrics of all steps
        except Exception as error:  # Orbax raises many kinds for damaged JSON
            for folder in sorted(self.folder.iterdir()):
                if damage := checksums.find_damage(folder):
                    cure = "restore it, or remove this folder to go on with the other checkpoints"
                    raise ValueError(f"{folder}: {damage}; {cure}") from error
            raise
        return manager

    def steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending."""
        return sorted(self._manager.all_steps()) if self.folder.exists() else []

    def save(self, state: TrainState, metrics: dict[str, float] | None) -> None:
        """Saves a state under its step, with its tuning metrics, if any.

        A state whose `opt_state` is None is saved as parameters only: it can be loaded, but training cannot resume.

        Raises:
          OSError: the checkpoint could not be written; earlier checkpoints are unaffected.
        """
        parts = {"params": state.params}
        if state.opt_state is not None:
            parts["rest"] = {"step": state.step, "opt_state": state.opt_state}
        ocp = _import_orbax()
        items = ocp.args.Composite(**{name: ocp.args.StandardSave(part) for name, part in parts.items()})
        step = int(state.step)
        try:
            self._manager.save(step, args=items, metrics=metrics)
        except Exception as error:  # Orbax and its stores raise many kinds for a full disk
            # Orbax drops its pending writes; Python would warn about them after our own error.
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[-200:]}"
            raise OSError(
                f"{self.folder}: checkpoint {step} could not be written; free some space ({reason})"
            ) from error
        checksums.record(self.folder / str(step))

    def best(self) -> tuple[int, dict[str, float]] | None:
        """Returns the step of lowest tuning loss and its metrics; None if no step was evaluated."""
        step = self._manager.best_step()
        return None if step is None else (step, dict(self._manager.metrics(step)))

    def restore_newest(self, like: TrainState) -> TrainState | None:
        """Restores the newest readable state; returns None if there are no checkpoints.

        Removes damaged checkpoints of later steps, so that the resumed run can save those steps again.

        Args:
          like: a state, or its shapes, with the structure of the state to restore.

        Raises:
          ValueError: there are checkpoints but none can be read, or they belong to another model.
        """
        progress = {"step": like.step, "opt_state": like.opt_state}
        checkpoint = self._restore(list(reversed(self.steps())), {"params": like.params, "rest": progress})
        if checkpoint is None:
            return None
        state = TrainState(checkpoint["rest"]["step"], checkpoint["params"], checkpoint["rest"]["opt_state"])
        for step in self.steps():
            if step > state.step:
                self._manager.delete(step)
        # Training donates the state; without a copy, restored arrays may share memory, which crashes under jax 0.5.0.
        return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), state)

    def restore_best(self, like: Any, fall_back: bool = True) -> Any | None:
        """Restores the parameters of lowest tuning loss; the newest if none was evaluated or the best is damaged.

        Args:
          like: parameters, or their shapes.
          fall_back: whether another checkpoint may take the place of a damaged one.

        Raises:
          ValueError: as `restore_newest`.
        """
        newest_first = list(reversed(self.steps()))
        best = self._manager.best_step()
        candidates = newest_first if best is None else [best, *(step for step in newest_first if step != best)]
        checkpoint = self._restore(candidates if fall_back else candidates[:1], {"params": like})
        return checkpoint and checkpoint["params"]

    def _restore(self, steps: list[int], like: dict) -> Any | None:
        target, ocp = jax.tree.map(_placed, like), _import_orbax()
        items = ocp.args.Composite(**{name: ocp.args.StandardRestore(item) for name, item in target.items()})
        for step in steps:
            damage = checksums.find_damage(self.folder / str(step))
            if damage is None:
                if mismatch := shape_mismatch(self._stored_shapes(step), like["params"]):
                    folder = self.folder / str(step)
                    raise ValueError(f"{folder}: {mismatch}; the checkpoint belongs to another model config")
                try:
                    return dict(self._manager.restore(step, args=items).items())
                except Exception as error:  # Orbax and its stores raise many kinds for a damaged file
                    damage = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            logger.warning(f"checkpoint {step} in {self.folder} cannot be read and is passed over ({damage})")
        if steps:
            raise ValueError(
                f"{self.folder}: none of the checkpoints {steps} can be read; train anew in another workdir"
            )
        return None

    def _stored_shapes(self, step: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each parameter from the checkpoint's metadata; empty if that is damaged too."""
        try:
            with _import_orbax().StandardCheckpointer() as reader:
                metadata = reader.metadata(self.folder / str(step) / "params")
        except Exception:  # as in `_restore`
            return {}
        tree = getattr(metadata, "item_metadata", metadata)  # newer versions of Orbax wrap the tree
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): tuple(leaf.shape) for path, leaf in leaves}

    def close(self) -> None:
        """Waits for pending writes."""
        self._manager.close()


@functools.cache
def _import_orbax():
    """Imports Orbax, and silences its logs: it logs every file, and raises the errors it logs."""
    import orbax.checkpoint

    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _quiet_threads()
    return orbax.checkpoint


def _quiet_threads() -> None:
    """Hides the output of Orbax threads about errors that Orbax also raises in the caller's thread."""
    show_thread, show_ignored = threading.excepthook, sys.unraisablehook

    def of_thread(arguments):
        if not type(arguments.thread).__module__.startswith("orbax"):
            show_thread(arguments)

    def of_callback(arguments):
        if str(arguments.exc_value) != "Event loop is closed":
            show_ignored(arguments)

    threading.excepthook, sys.unraisablehook = of_thread, of_callback


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding of an array; that of parameters if it has none, wherever it was saved."""
    sharding = getattr(leaf, "sharding", None) or devices.replicated()
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def shape_mismatch(found: dict[str, tuple[int, ...]], like: Any) -> str | None:
    """Describes the first parameter whose shape differs from `like`; None if all agree or `found` is empty."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = jax.tree_util.keystr(path)
        if found and found.get(name) != leaf.shape:
            return f"{name} has shape {found.get(name, 'none')}, expected {leaf.shape}"
    return None
