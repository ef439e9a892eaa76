"""Handlers of Ctrl-C and SIGTERM that let the training loop save and stop."""

import signal
import sys


def exit_on_signal(number, frame) -> None:
    """Exits with status 128 + signal number, as shells expect."""
    del frame
    sys.exit(128 + number)


class Interrupt:
    """Records Ctrl-C and SIGTERM during a loop, so that it can save and stop; a second signal stops at once.

    Attributes:
      signal: the signal received, or None.
    """

    signal: int | None = None

    def __enter__(self) -> "Interrupt":
        """Installs the signal handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        """Removes the signal handlers."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, exit_on_signal)

    def _note(self, number, frame) -> None:
        del frame
        self.signal = number
        self.__exit__()

    def __call__(self) -> bool:
        """Returns whether a signal was received."""
        return self.signal is not None
