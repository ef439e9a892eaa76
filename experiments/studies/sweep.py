"""Runs named commands, some at a time, and reads and tabulates their results: the base of the studies.

Each run is a command of `experiments` with its own workdir. A finished run is not repeated: the command itself checks
that recipe, data and labels are unchanged, and refuses a workdir of others. `WORKDIR.log` holds what the run printed.
"""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

from absl import flags
from tqdm import tqdm

from behrt_jax.training import metrics_writer
from behrt_jax.training.workdir import EVALUATION_FILE


class Run(NamedTuple):
    """A run of a command.

    Attributes:
      command: the module of `experiments`, such as `pretrain`.
      workdir: output folder of the command; its log is beside it.
      arguments: all flags of the command.
    """

    command: str
    workdir: Path
    arguments: tuple[str, ...]

    @property
    def log(self) -> Path:
        """The file of what the run prints."""
        return self.workdir.with_name(f"{self.workdir.name}.log")


def training(
    command: str, recipe: str, workdir: Path, overrides: Mapping[str, Any], *options: str, baselines: bool = False
) -> Run:
    """Returns a run of `pretrain` or `finetune`.

    Args:
      command: `pretrain` or `finetune`.
      recipe: file of the recipe.
      workdir: output folder.
      overrides: values of config keys, such as `{"train.num_steps": 100}`.
      options: further flags.
      baselines: whether to fit baselines.
    """
    values = [f"--config.{key}={value}" for key, value in overrides.items()]
    without = [] if baselines else ["--nobaselines"]
    return Run(command, workdir, (f"--config={recipe}", f"--workdir={workdir}", *without, *options, *values))


def run_all(runs: Mapping[str, Run], jobs: int = 1) -> None:
    """Executes runs, `jobs` at a time, each on its share of the cores.

    Args:
      runs: by name, in the order to start them; none may need another's results.
      jobs: number of runs at a time.

    Raises:
      ValueError: some runs failed; the message names each, with the last line of its log. The others are finished.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    shares = SimpleQueue()
    for job in range(jobs):
        shares.put(cores[job::jobs])

    def bind() -> None:
        if share := shares.get():
            os.sched_setaffinity(0, share)  # of this thread, and of the processes that it starts

    processes, stopped, failures = [], threading.Event(), []
    with ThreadPoolExecutor(jobs, initializer=bind) as pool, tqdm(total=len(runs), unit="run", leave=False) as bar:
        pending = {pool.submit(_execute, name, run, processes, stopped): name for name, run in runs.items()}
        try:
            for future in as_completed(pending):
                bar.update()
                if status := future.result():
                    failures.append(_describe_failure(pending[future], runs[pending[future]], status))
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()  # training saves a checkpoint and ends
            raise
    if failures:
        raise ValueError(f"{len(failures)} of {len(runs)} runs failed: {'; '.join(failures)}")


def _execute(name: str, run: Run, processes: list[subprocess.Popen], stopped: threading.Event) -> int:
    run.log.parent.mkdir(parents=True, exist_ok=True)
    command = ["-m", f"experiments.{run.command}", *run.arguments]
    tqdm.write(f"{name}: python {shlex.join(command)} >> {run.log}")
    with run.log.open("a") as log:
        # In its own session: Ctrl-C must not reach it beside the signal of `run_all`, which would cut saving short.
        output = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
        process = subprocess.Popen([sys.executable, *command], **output)
    processes.append(process)
    if stopped.is_set():  # while the process was started
        process.terminate()
    return process.wait()


def _describe_failure(name: str, run: Run, status: int) -> str:
    lines = run.log.read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), "it printed nothing")
    return f"'{name}' with status {status}: {last.rpartition(chr(13))[2].strip()} (all output: {run.log})"


def read_evaluation(workdir: Path) -> dict:
    """Reads `evaluation.json` of a run; raises a ValueError if there is none."""
    file = workdir / EVALUATION_FILE
    if not file.exists():
        raise ValueError(f"{file}: does not exist; expected a finished run, made by this command")
    return json.loads(file.read_text())


def read_metrics(workdir: Path, split: str) -> list[dict]:
    """Reads the lines of `metrics.jsonl` on a split, `train` or `tuning`, by step; raises a ValueError without any."""
    lines = [line for line in metrics_writer.read_metrics(workdir) if line["split"] == split]
    if not lines:
        raise ValueError(f"{workdir}/metrics.jsonl: found no metrics of {split}; expected a finished run")
    return lines


def mean_and_range(values: Sequence[float]) -> str:
    """Formats values of several seeds, `0.550 [0.500, 0.600]`: mean, lowest and highest; empty without values."""
    return f"{sum(values) / len(values):.3f} [{min(values):.3f}, {max(values):.3f}]" if values else ""


def format_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"


def define_flags(workdir: str) -> None:
    """Defines the flags that the studies share."""
    flags.DEFINE_string("workdir", workdir, "Where the runs are made and the table is written.")
    flags.DEFINE_integer("jobs", 1, "Runs at a time, each on its share of the cores.", lower_bound=1)
