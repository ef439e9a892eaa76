"""What every command shares: flags, errors in one line, interrupts, and memory settings for long CPU runs."""

import os
import platform
import re
import signal
import sys
import traceback
from collections.abc import Callable

from absl import flags

flags.DEFINE_bool("debug", False, "Show the traceback of an error.")

USER_ERROR = 2
# glibc hands memory back to the system and asks for it again at every step; a step on CPU is faster where it keeps it.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags, runs a command and exits; a user's error is one line and exit status 2."""
    try:
        flags.FLAGS(sys.argv)
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; nothing is half-written, the same command begins again", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (flags.Error, ValueError, OSError, AttributeError, KeyError, TypeError) as error:
        if "--debug" in sys.argv or not is_user_error(error):
            traceback.print_exc()
        print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(USER_ERROR)


def is_user_error(error: Exception) -> bool:
    """Whether an error comes from input: ours are ValueErrors, and parsing flags raises kinds of its own."""
    return isinstance(error, flags.Error | ValueError | OSError) or not flags.FLAGS.is_parsed()


def describe(error: Exception) -> str:
    """Puts an error in one line; a config key that does not exist is named with the nearest that does."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    if isinstance(error, AttributeError | KeyError):
        key = text.strip("'\"").split("'")[0].split('"')[0].strip()
        given = next((arg.split("=")[0] for arg in sys.argv if arg.split("=")[0].endswith(f".{key}")), key)
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"{given}: no such config key" + (
            f"; did you mean {given.rpartition('.')[0]}.{near[1]}?" if near else ""
        )
    return text


class Interrupt:
    """Notes Ctrl-C and SIGTERM, so that a loop can save and stop; a second signal stops at once.

    Attributes:
      signal: the signal that came, or None.
    """

    def __init__(self):
        """Begins to listen."""
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number, frame):
        del frame
        self.signal = number
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler if each == signal.SIGINT else signal.SIG_DFL)

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None


def keep_memory() -> None:
    """Starts the command again with glibc told to keep memory; does nothing elsewhere or where it is set already."""
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in KEEP_MEMORY):
        sys.stdout.flush()
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY})
