"""One process at a time holds a lock; a process that ends, however it does, holds none."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from behrt_jax.data import locks

pytestmark = pytest.mark.skipif(locks.fcntl is None, reason="there are no locks here")
HOLDER = """
import sys, time
from pathlib import Path
from behrt_jax.data import locks
with locks.hold(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLDER, tmp_path / "lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_refused_by_its_name(other, tmp_path):
    with pytest.raises(ValueError, match=rf"it is trained by process {other.pid} on .* since 20.*; use another"):
        with locks.hold(tmp_path / "lock", "it is trained", "use another"):
            pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_no_lock(other, tmp_path, number):
    other.send_signal(number)
    other.wait()
    with locks.hold(tmp_path / "lock", "it is trained", "use another"):
        assert json.loads((tmp_path / "lock").read_text())["process"] == os.getpid()
    assert not (tmp_path / "lock").exists()


def test_without_a_cure_the_second_waits(other, tmp_path, messages, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.01)
    ends = threading.Timer(0.3, other.kill)
    ends.start()
    begin = time.monotonic()
    with locks.hold(tmp_path / "lock", "it is prepared"):
        assert time.monotonic() - begin > 0.2
    (message,) = messages
    assert message.startswith(f"waiting: it is prepared by process {other.pid} on ")


def test_a_lock_is_released_where_the_block_fails(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), locks.hold(tmp_path / "new" / "lock", "it", "use another"):
            raise KeyError
    assert not list((tmp_path / "new").iterdir())


def test_threads_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "POLL", 0.001)
    inside, most = [], []

    def work():
        for _ in range(10):
            with locks.hold(tmp_path / "lock", "it"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 40 and max(most) == 1


def test_a_file_system_without_locks_is_said_to_be_one(tmp_path, monkeypatch, messages):
    def refuse(*arguments):
        raise OSError(locks.NO_LOCKS[0], "no locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.hold(tmp_path / "lock", "it", "use another"):
        pass
    assert "has no locks" in messages[0]
