"""Contestants as worker processes: this checkout, another one, and peers in PyTorch."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from behrt_jax.benchmarks import worker

ROOT = Path(__file__).parents[2]
# Files of the contestants of this library.
OWN = {
    "embed": "embedding.py",
    "host": "host.py",
    "main_job": "main_job.py",
    "prepare": "preparation.py",
    "startup": "startup.py",
}
NO_PEERS = ("embed", "host", "prepare")


class Contestant(NamedTuple):
    """How to start a contestant.

    Attributes:
      name: for tables.
      file: defines `start`; see `worker`.
      root: the checkout on the path.
      python: the interpreter.
    """

    name: str
    file: Path
    root: Path
    python: str


PRODUCT = Contestant("matrix product", ROOT / "behrt_jax" / "benchmarks" / "product.py", ROOT, sys.executable)


class Process(NamedTuple):
    """A running contestant.

    Attributes:
      contestant: how it was started.
      process: its process.
      start_seconds: from its start until it was ready for the first step.
    """

    contestant: Contestant
    process: subprocess.Popen
    start_seconds: float = 0.0


def choose(
    peer_folder: Path, peers: list[str], against: str = "", peer_python: str = "", what: str = "step"
) -> list[Contestant]:
    """Lists the contestants of a benchmark, this checkout first.

    Args:
      peer_folder: holds a file for each peer, such as strong.py.
      peers: names of peers.
      against: another checkout of this library, or empty.
      peer_python: the interpreter of peers; this one if empty.
      what: as in `Workload`.

    Raises:
      ValueError: no such peer or checkout, or peers are given for what they do not do.
    """
    own = f"behrt_jax/benchmarks/{OWN.get(what, 'train_step.py')}"
    contestants = [Contestant("this checkout", ROOT / own, ROOT, sys.executable)]
    if peers and what in NO_PEERS:
        raise ValueError(f"--peers: found {', '.join(peers)}; peers do not read data sets, as --what={what} does")
    if against:
        root = Path(against).resolve()
        if not (root / "behrt_jax" / "training" / "loop.py").is_file():
            raise ValueError(f"--against={against}: expected a checkout of behrt_jax, with behrt_jax/training/loop.py")
        is_theirs = what != "main_job" and (root / own).is_file()
        file = (root if is_theirs else ROOT) / own
        contestants.append(Contestant(root.name, file, root, sys.executable))
    known = sorted(file.stem for file in peer_folder.glob("*.py") if not file.stem.startswith("_"))
    for name in peers:
        if name not in known:
            raise ValueError(f"--peers: found {name!r}; expected some of {', '.join(known)}")
        contestants.append(Contestant(name, peer_folder / f"{name}.py", ROOT, peer_python or sys.executable))
    return contestants


def launch(contestant: Contestant, folder: Path) -> Process:
    """Starts a contestant and waits until it is ready.

    Raises:
      ValueError: its process stops, or lacks a package.
    """
    begin = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(contestant.root)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # it would add seconds of compiling modules to each start
    if cache := jax.config.jax_compilation_cache_dir:  # pyright: ignore[reportAttributeAccessIssue]
        minimum = {"MIN_COMPILE_TIME_SECS": "0", "MIN_ENTRY_SIZE_BYTES": "-1"}
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache}
        environment |= {f"JAX_PERSISTENT_CACHE_{name}": value for name, value in minimum.items()}
    command = [contestant.python, "-P", worker.__file__, str(contestant.file), str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    item = Process(contestant, process)
    try:
        answer = ask(item)
        if package := answer.get("missing"):
            raise ValueError(
                f"{contestant.name}: {contestant.python} has no package {package}; install requirements-benchmark.txt "
                "there, or name the Python of an environment that has it by --peer_python"
            )
    except BaseException:
        stop(item)
        raise
    return item._replace(start_seconds=time.perf_counter() - begin)


def ask(item: Process, **request) -> dict:
    """Sends a request to a contestant, if there is one, and returns its next answer."""
    with contextlib.suppress(BrokenPipeError):  # the missing answer below says that it stopped
        if request:
            print(json.dumps(request), file=item.process.stdin, flush=True)
    line = item.process.stdout.readline()  # pyright: ignore
    if not line:
        status = item.process.wait()
        raise ValueError(f"{item.contestant.name}: its process stopped with status {status}; its error is above")
    return json.loads(line)


@contextlib.contextmanager
def running(contestants: list[Contestant], folder: Path) -> Iterator[list[Process]]:
    """Starts contestants one after the other, and ends them all."""
    processes = []
    try:
        for contestant in contestants:
            processes.append(launch(contestant, folder))
        yield processes
    finally:
        for item in processes:
            stop(item)


def stop(item: Process) -> None:
    """Ends a contestant."""
    with contextlib.suppress(BrokenPipeError):
        item.process.stdin.close()  # pyright: ignore
    try:
        item.process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        item.process.kill()
        item.process.wait()
    item.process.stdout.close()  # pyright: ignore
