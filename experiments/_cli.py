"""Shared code of the commands: flags, one-line errors and interrupts."""

import hashlib
import os
import platform
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
from absl import flags

from behrt_jax.training.interrupts import exit_on_signal, keep_interrupts

flags.DEFINE_bool("debug", False, "Show the traceback of an error.")
flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs in ~/.cache/behrt_jax for the next command.")

USER_ERROR = 2
INTERRUPTED = {
    False: "No partial output was written; run the same command to start over.",
    True: "Finished parts are kept; run the same command to resume.",
}


def run(main: Callable[[], int | None], resumes: bool = False) -> None:
    """Parses the flags, runs a command and exits; a user's error prints one line and gives exit status 2.

    `resumes`: whether the command keeps what it finished before Ctrl-C, and goes on from there.
    """
    signal.signal(signal.SIGTERM, exit_on_signal)
    keep_interrupts()
    try:
        _parse_flags()
        if flags.FLAGS["compilation_cache"].value:
            use_compilation_cache()
        sys.exit(main())
    except KeyboardInterrupt:
        print(f"\nInterrupted. {INTERRUPTED[resumes]}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (ValueError, OSError) as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def _parse_flags() -> None:
    try:
        flags.FLAGS(sys.argv)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        raise ValueError(describe(error)) from error


def use_compilation_cache() -> None:
    """Makes JAX keep compiled programs on disk, which saves most of the start of the next command.

    The folder is that of the processor's instructions, as a home folder may be shared by machines that differ in them.
    JAX's own environment variables win.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cpu_info, machine = Path("/proc/cpuinfo"), platform.machine()
    if cpu_info.exists():
        machine += "".join(re.findall(r"(?m)^(?:flags|Features)\s*:.*$", cpu_info.read_text())[:1])
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "behrt_jax"
    folder = root / hashlib.sha256(machine.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home folder that cannot be written to: nothing is kept
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def describe(error: Exception) -> str:
    """Rewords an error of the flags; for an unknown config key, names the nearest existing one."""
    text = " ".join(str(error).split())
    if isinstance(error, AttributeError | KeyError):
        key = re.search(r"\w+", text)[0]  # pyright: ignore
        paths = (arg.partition("=")[0] for arg in sys.argv)
        argument = next(
            (match[0] for path in paths if (match := re.match(rf"--config\.([\w.]+\.)?{key}\b", path))), key
        )
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"{argument}: no such config key" + (
            f"; did you mean {argument.rpartition('.')[0]}.{near[1]}?" if near else ""
        )
    if "--config=None" in text or "Failed loading config" in text:
        argument = next((arg for arg in sys.argv if arg.startswith("--config=")), "--config")
        return f"{argument}: expected a recipe that exists, such as --config=configs/small.py"
    if isinstance(error, OSError) and error.errno and not error.filename:  # a failed write without a file name
        return f"{text}; check the space and the permissions of --workdir and data.prepared_dir"
    return text


def default_workdir(flag: str | None) -> Path:
    """Returns the workdir given by `--workdir`, or runs/ and the recipe's name."""
    return Path(flag or Path("runs") / Path(flags.FLAGS["config"].config_filename).stem)  # pyright: ignore


def resume_command(command: str, folder: Path) -> str:
    """Returns the given command line, with the workdir added if it was left at its default."""
    arguments = sys.argv[1:]
    if not any(word.partition("=")[0] == "--workdir" for word in arguments):
        arguments = [*arguments, f"--workdir={folder}"]
    return f"python -m experiments.{command} {shlex.join(arguments)}"
