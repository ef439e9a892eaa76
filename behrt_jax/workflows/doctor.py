"""Examines the machine: devices, versions, memory and disk, and whether a train step gives the numbers of a CPU."""

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import jax
import numpy as np

from behrt_jax.objectives.joint import make_objective
from behrt_jax.recipes import small
from behrt_jax.training import loop, state, workdir
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.recipe import PretrainingRecipe, read_recipe

LOSSES = (7.0406, 6.9760, 6.7592)  # nats a masked code of the first steps on a CPU, by `run_steps`
TOLERANCE = 0.01  # relative; products in TensorFloat-32 differ by less
SHAPE = (4, 64)  # rows and tokens of the batch
LEAST_DISK, LEAST_MEMORY = 2.0, 3.0  # GiB: what the main job takes
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "jax-metal", "jax-mps", "jax-cuda13-plugin")
SLOW = ("JAX_DISABLE_JIT", "JAX_DEBUG_NANS", "JAX_ENABLE_X64", "JAX_ENABLE_CHECKS")


class Finding(NamedTuple):
    """What was found, and what to do about it; no `cure` if all is well."""

    name: str
    found: str
    cure: str = ""


def examine() -> list[Finding]:
    """Examines this machine; takes some seconds, most of them to compile a step.

    Returns:
      One finding for each of versions, devices, settings, memory, disk and the train step.
    """
    return [
        check_versions(find_versions()),
        check_devices(),
        check_settings(os.environ),
        check_memory(count_memory()),
        check_disk(Path.cwd()),
        check_step(run_steps),
    ]


def find_versions() -> dict[str, str]:
    """Returns the installed ones of `PACKAGES` with their versions."""
    installed = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


def check_versions(versions: dict[str, str]) -> Finding:
    """Checks that plugins for GPUs go with the version of JAX."""
    found = ", ".join(f"{name} {version}" for name, version in versions.items())
    found = f"Python {platform.python_version()}, {found}"
    number = {name: tuple(map(int, re.findall(r"\d+", version)[:2])) for name, version in versions.items()}
    cure = ""
    if "jax-metal" in versions and number["jax"] > (0, 5):
        cure = "jax-metal takes JAX up to 0.5.0: install requirements-metal.txt, or remove it for 'jax-mps<0.11'"
    elif number.get("jax-mps", (0, 0)) >= (0, 11):
        cure = "jax-mps from 0.11 on needs a newer JAX than requirements.txt: pip install 'jax-mps<0.11'"
    elif number["jax"] != number["jaxlib"]:
        cure = "jax and jaxlib must be of one version: install one of the requirements files anew"
    return Finding("versions", found, cure)


def check_devices() -> Finding:
    """Checks that a GPU of this machine is used."""
    devices = jax.devices()
    limit = (devices[0].memory_stats() or {}).get("bytes_limit")
    found = f"{len(devices)} x {devices[0].device_kind}" + (f", {limit / 2**30:.0f} GiB each" if limit else "")
    if devices[0].platform != "cpu" or "cpu" in os.environ.get("JAX_PLATFORMS", ""):  # the second: as the user chose
        return Finding("devices", found)
    if shutil.which("nvidia-smi"):
        cure = "there is an NVIDIA GPU, but JAX does not use it: pip install -r requirements-cuda.txt"
        return Finding("devices", found, cure)
    is_apple = (platform.system(), platform.machine()) == ("Darwin", "arm64")
    cure = "there is an Apple GPU, but JAX does not use it: see docs/gpu.md, Apple" if is_apple else ""
    return Finding("devices", found, cure)


def check_settings(environment) -> Finding:
    """Checks that no setting of JAX makes each step slow."""
    slow = [name for name in SLOW if environment.get(name, "").lower() not in ("", "0", "false")]
    found = ", ".join(f"{name}={environment[name]}" for name in slow) or "none that makes steps slow"
    return Finding("settings", found, f"for training, unset {', '.join(slow)}" if slow else "")


def count_memory() -> float:
    """Returns the memory of the machine in GiB; NaN where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # not on Windows
        return float("nan")


def check_memory(gib: float) -> Finding:
    """Checks that the main job fits."""
    cure = f"the main job takes up to {LEAST_MEMORY:.0f} GiB" if gib < LEAST_MEMORY else ""
    return Finding("memory", f"{gib:.1f} GiB, {os.cpu_count()} cores", cure)


def check_disk(folder: Path) -> Finding:
    """Checks that prepared data and checkpoints can be written to a folder."""
    free = shutil.disk_usage(folder).free / 2**30
    cure = f"free some space: a run and its data take up to {LEAST_DISK:.0f} GiB" if free < LEAST_DISK else ""
    if not os.access(folder, os.W_OK):
        cure = "it cannot be written: name other folders by --workdir and --config.data.prepared_dir"
    return Finding("disk", f"{free:.1f} GiB free in {folder}", cure)


def check_step(run: Callable[[], tuple[list[float], float]]) -> Finding:
    """Checks the losses of the first train steps against those of a CPU."""
    try:
        losses, seconds = run()
    except Exception as error:  # of a plugin for GPUs, which may lack an operation
        reason = " ".join(str(error).split())[:200]
        cure = "JAX_PLATFORMS=cpu works on every machine; for GPUs see docs/gpu.md"
        return Finding("train step", f"failed with {type(error).__name__}: {reason}", cure)
    texts = [", ".join(f"{loss:.4f}" for loss in each) for each in (losses, LOSSES)]
    found = f"losses {texts[0]}; {seconds * 1000:.0f} ms a step of {np.prod(SHAPE)} tokens"
    cure = f"a CPU gives {texts[1]}: do not trust this device; use JAX_PLATFORMS=cpu"
    return Finding("train step", found, "" if np.allclose(losses, LOSSES, rtol=TOLERANCE, atol=0) else cure)


def run_steps() -> tuple[list[float], float]:
    """Trains the small model on one made-up batch; returns the losses of the first steps, and seconds of the last."""
    rng, (rows, length) = np.random.default_rng(0), SHAPE
    config = small.get_config().to_dict()
    config["model"] |= {"vocab_size": 1000, "dropout": 0.0}
    recipe = cast(PretrainingRecipe, read_recipe(config))
    batch = {"codes": rng.integers(5, 1000, SHAPE, np.int32)}
    batch |= {"visit_ids": np.sort(rng.integers(0, 10, SHAPE, np.int32)), "patient_ids": np.ones(SHAPE, np.int32)}
    batch |= {"positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)), "maskable": np.ones(SHAPE, bool)}
    batch |= {"ages": np.sort(rng.uniform(0, 90, SHAPE)).astype(np.float32)}
    batch |= {name: np.zeros(SHAPE, np.float32) for name in ("time_deltas", "dates")}
    model = workdir.build_model(recipe.model, recipe.objective)
    optimizer = make_optimizer(recipe.optimizer, 40)  # of so few updates that the first ones have a high rate
    train_step = loop.make_train_step(make_objective(model, recipe.objective, recipe.data.use_sep), optimizer, 0)
    current = state.create_state(lambda key: workdir.initialize(model, key), optimizer, 0)
    losses, seconds = [], 0.0
    for _ in LOSSES:
        begin = time.perf_counter()
        current, metrics = train_step(current, batch)
        loss, masked = jax.device_get(metrics["mlm/loss"])
        seconds = time.perf_counter() - begin
        losses.append(float(loss / masked))
    return losses, seconds


def describe(findings: list[Finding]) -> list[str]:
    """Returns a line for each finding, and one for what to do about it."""
    lines = []
    for finding in findings:
        lines.append(f"{'look' if finding.cure else 'ok':<6}{finding.name:<12}{finding.found}")
        lines += [f"{'':<18}-> {finding.cure}"] if finding.cure else []
    return lines
