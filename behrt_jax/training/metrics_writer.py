"""Metric logging to `metrics.jsonl`, one JSON object per line, and to TensorBoard files."""

import json
import math
import time
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsWriter:
    """Appends metrics to a workdir; on resumption, first removes those after the resumed step.

    Attributes:
      file: `metrics.jsonl`; each line holds `step`, `split`, metrics by name, and `seconds`, the wall time of training
        up to it; pauses, and steps that a resumption repeats, are left out.
    """

    def __init__(self, workdir: Path, step: int):
        """Opens the workdir to append metrics after `step`."""
        self.file = workdir / "metrics.jsonl"
        lines = [line for line in read_metrics(workdir) if line["step"] <= step]
        scratch = self.file.with_suffix(".tmp")
        scratch.write_text("".join(json.dumps(line) + "\n" for line in lines))
        scratch.replace(self.file)
        self._start = time.perf_counter() - (lines[-1].get("seconds", 0.0) if lines else 0.0)
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, step: int, split: str, metrics: dict[str, float]) -> None:
        """Writes one line and its TensorBoard scalars."""
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.file.open("a") as file:
            seconds = round(time.perf_counter() - self._start, 3)
            file.write(json.dumps({"step": step, "split": split, **finite, "seconds": seconds}) + "\n")
        for name, value in finite.items():
            if value is not None:
                self._board.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flushes and closes the TensorBoard file."""
        self._board.close()


def read_metrics(workdir: Path) -> list[dict]:
    """Reads the lines of `metrics.jsonl`, without a last line that is incomplete because the process was killed."""
    file = workdir / "metrics.jsonl"
    if not file.exists():
        return []
    lines = file.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


def read_series(workdir: Path, split: str, name: str, last_step: int) -> list[float]:
    """Returns the values of one metric on one split, in order, up to and including `last_step`."""
    lines = (line for line in read_metrics(workdir) if line["split"] == split and line["step"] <= last_step)
    return [line[name] for line in lines if line.get(name) is not None]
