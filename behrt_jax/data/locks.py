"""Locks of files and folders that one process may write at a time."""

import contextlib
import datetime
import errno
import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows, where nothing is locked
    fcntl = None

logger = logging.getLogger(__name__)
POLL = 0.5  # seconds
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # errors of file systems without locks


@contextlib.contextmanager
def hold(file: Path, what: str, cure: str = "") -> Iterator[None]:
    """Holds a lock until the block ends; the system releases it when the process ends, however that happens.

    Args:
      file: the lock file, which says who holds the lock; removed at the end.
      what: what is done under the lock, for the message, such as "runs/small is trained".
      cure: what to do where another process holds the lock; if empty, this call waits for it, with a message.

    Raises:
      ValueError: another process holds the lock, and there is a `cure`; the message names it and when it began.
      OSError: the lock file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    has_logged = False
    while (handle := _try(file)) is None:
        holder = _read(file)
        if cure:
            raise ValueError(f"{what} by {holder}; {cure}")
        if not has_logged:
            logger.info(f"waiting: {what} by {holder}")
        has_logged = True
        time.sleep(POLL)
    with handle:
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _try(file: Path) -> IO[str] | None:
    """Opens and locks a file, and writes this process into it; None if another process holds the lock."""
    handle = file.open("a+")
    try:
        _lock(handle, file)
        if not _is_at(handle, file):  # the process that held the lock has removed the file meanwhile
            handle.close()
            return _try(file)
        handle.truncate(0)
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"process": os.getpid(), "machine": platform.node(), "since": now}, handle)
        handle.flush()
    except BlockingIOError:
        handle.close()
        return None
    except OSError:
        handle.close()
        raise
    return handle


def _lock(handle: IO[str], file: Path) -> None:
    """Locks an open file; raises a BlockingIOError if another process has it, and warns where files have no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # pyright: ignore[reportOptionalMemberAccess]
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        logger.warning(f"{file.parent}: its file system has no locks; let one process at a time write there")


def _is_at(handle: IO[str], file: Path) -> bool:
    """Returns whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False


def _read(file: Path) -> str:
    """Describes the process that holds a lock."""
    try:
        holder = json.loads(file.read_text())
        return f"process {holder['process']} on {holder['machine']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written or removed
        return "another process"
