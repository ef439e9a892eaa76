"""Commands in children of one process that has imported large libraries: a tiny run takes less than their imports.

A child imports our own modules itself, and ends as a process of its own: signals, exit status and what is left behind
are those of `python -m`. Whether a command imports each library that it needs is for what is run by `python -m`.
"""

import importlib
import json
import os
import resource
import runpy
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

LIBRARIES = (  # none that starts threads when imported, as Polars does: a child lacks them and waits for ever
    "flax.linen",
    "jinja2",
    "matplotlib.figure",
    "ml_collections.config_flags",
    "optax",
    "orbax.checkpoint",
    "scipy.stats",
    "sklearn.linear_model",
    "sklearn.metrics",
    "tensorboardX",
    "tensorflow_datasets",
    "tqdm",
    "xgboost",
)
NUMBER = struct.Struct("i")  # how a process id and an exit status are sent


class Server:
    """The process that has imported everything; it ends when this one closes its side or ends."""

    def __init__(self, environment: dict[str, str], where: Path):
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", __spec__.name, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, cwd=where, env=environment, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def start(
        self, prints: Path, module: str, arguments: list[str], largest_file: int = 0, constants: dict | None = None
    ) -> "Command":
        """Starts a command.

        Args:
          prints: where to write what it prints; `.out` and `.err` are added.
          module: such as experiments.pretrain.
          arguments: its flags.
          largest_file: bytes of a file that may be written; 0: any number.
          constants: values of constants of our modules, such as behrt_jax.baselines.masked_codes.NETWORK_STEPS.
        """
        ours, theirs = socket.socketpair()
        files = [prints.with_suffix(suffix) for suffix in (".out", ".err")]
        with theirs, files[0].open("wb") as out, files[1].open("wb") as err:
            given = {"module": module, "arguments": arguments, "largest_file": largest_file}
            given["constants"] = constants or {}
            handles = [theirs.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self._socket, [json.dumps(given).encode() + b"\n"], handles)
        return Command([module, *arguments], ours, files)

    def close(self) -> None:
        self._socket.close()
        self._process.wait(timeout=60)


class Command:
    """What is needed of `subprocess.Popen`; what a command prints is read whenever one likes."""

    def __init__(self, args: list[str], connection: socket.socket, files: list[Path]):
        self.args, self.returncode = args, None
        self._connection, self._files = connection, files
        self.pid = self._receive(timeout=300)

    def _receive(self, timeout: float | None) -> int:
        self._connection.settimeout(timeout)
        found = self._connection.recv(NUMBER.size)
        assert len(found) == NUMBER.size, "the process of tests.experiments.commands has ended"
        return NUMBER.unpack(found)[0]

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.wait(timeout=0)
            except BlockingIOError:
                pass
        return self.returncode

    def wait(self, timeout: float | None = 300) -> int:
        if self.returncode is None:
            self.returncode = self._receive(timeout)
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        self.wait(timeout)
        return self.printed(), self._files[1].read_text()

    def printed(self) -> str:
        return self._files[0].read_text(errors="replace")  # while it is written it may end within a letter

    def errors(self) -> str:
        return self._files[1].read_text(errors="replace")

    def wait_until(self, reached) -> None:
        """Waits until a function gives true, or until the command has ended."""
        while self.poll() is None and not reached():
            time.sleep(0.002)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def serve(control: socket.socket) -> dict | None:
    """Forks a child for every command that is asked for; returns what to run, in the child, and None at the end."""
    children: set[int] = set()
    while True:
        text, handles, _, _ = socket.recv_fds(control, 1 << 16, 3)
        children = {pid for pid in children if os.waitpid(pid, os.WNOHANG)[0] == 0}
        if not text:
            return None
        while not text.endswith(b"\n"):
            text += control.recv(1 << 16)
        if (pid := os.fork()) == 0:
            control.close()
            watch(handles)
            return json.loads(text)
        children.add(pid)
        for handle in handles:
            os.close(handle)


def watch(handles: list[int]) -> None:
    """Forks the command itself, in which it returns; tells its process id and at last its exit status."""
    status, *prints = handles
    pid = os.fork()
    if pid:
        os.write(status, NUMBER.pack(pid))
        os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        os._exit(0)
    for handle, number in zip(prints, (1, 2), strict=True):
        os.dup2(handle, number)
    for handle in handles:
        os.close(handle)


if __name__ == "__main__":
    for name in LIBRARIES:
        __import__(name)
    asked = serve(socket.socket(fileno=int(sys.argv[1])))
    if asked:
        if asked["largest_file"]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"], asked["largest_file"]))
        for name, value in asked["constants"].items():
            place, _, constant = name.rpartition(".")
            assert hasattr(importlib.import_module(place), constant), name
            setattr(sys.modules[place], constant, value)
        sys.argv = [asked["module"], *asked["arguments"]]
        runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)
