"""Commands: thin scripts, run as `python -m experiments.NAME`.

On Linux a command starts itself again, before it imports anything else, so that glibc keeps memory between steps.
"""

import os
import platform
import sys

# By default glibc returns memory to the system and requests it again at each step; CPU steps are faster if it keeps it.
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
    "MALLOC_TOP_PAD_": "67108864",
    "MALLOC_ARENA_MAX": "1",
}


def restart_with_malloc_settings() -> None:
    """Starts this process again with `KEEP_MEMORY`; does nothing without glibc or if one of these is set already."""
    if platform.libc_ver()[0] == "glibc" and not any(name in os.environ for name in KEEP_MEMORY):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **KEEP_MEMORY})


if sys.argv[0] == "-m":  # so it is until Python has found the module that `python -m` names
    restart_with_malloc_settings()
