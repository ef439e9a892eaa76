"""Ctrl-C and SIGTERM: noted while a loop runs, so that it can save and stop."""

import signal
import sys


def exit_on_signal(number, frame) -> None:
    """Exits with 128 and the number of the signal, as shells expect."""
    del frame
    sys.exit(128 + number)


class Interrupt:
    """Notes Ctrl-C and SIGTERM while a loop runs, so that it can save and stop; a second signal stops at once.

    Attributes:
      signal: the signal that came, or None.
    """

    signal: int | None = None

    def __enter__(self) -> "Interrupt":
        """Begins to listen."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)
        return self

    def __exit__(self, *exception) -> None:
        """Listens no more."""
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, exit_on_signal)

    def _note(self, number, frame) -> None:
        del frame
        self.signal = number
        self.__exit__()

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.signal is not None
