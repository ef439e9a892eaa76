"""Handlers of Ctrl-C and SIGTERM that let the training loop save and stop."""

import os
import signal
import sys
import threading

RETRY = 0.1  # seconds


def exit_on_signal(number, frame) -> None:
    """Exits with status 128 + signal number, as shells expect."""
    del frame
    sys.exit(128 + number)


def keep_interrupts() -> None:
    """Sends Ctrl-C and SIGTERM again where Python drops the exception that they raise, as in garbage collection."""
    show = sys.unraisablehook

    def send_again(arguments) -> None:
        is_exit = getattr(arguments.exc_value, "code", None) == 128 + signal.SIGTERM
        if is_exit or arguments.exc_type is KeyboardInterrupt:
            number = signal.SIGTERM if is_exit else signal.SIGINT
            threading.Timer(RETRY, os.kill, (os.getpid(), number)).start()  # by then the callback has ended
        else:
            show(arguments)

    sys.unraisablehook = send_again


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
