"""Signals end a command wherever they reach it."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import gc, signal, time
from behrt_jax.training import interrupts
signal.signal(signal.SIGTERM, interrupts.exit_on_signal)
interrupts.keep_interrupts()

def slow_callback(phase, info):
    print("collecting", flush=True)
    time.sleep(0.5)

gc.callbacks.append(slow_callback)
try:
    gc.collect()
    gc.callbacks.clear()
    time.sleep(30)
except KeyboardInterrupt:
    raise SystemExit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_garbage_collection_is_not_lost(number):
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "collecting\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number and not errors
