"""Writes simulated patients and measures the performance of the oracle on them."""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import tqdm
from sklearn.metrics import average_precision_score

from behrt_jax.data import events
from behrt_jax.simulation import oracle
from behrt_jax.simulation.simulator import simulate, write
from behrt_jax.simulation.world import load_world, make_world


def write_patients(output: Path, patients: int, seed: int, measurements: int = 0) -> str:
    """Writes a data set atomically and returns a line of counts; raises a ValueError if `output` is not empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output={output}: exists and is not an empty directory; name another, or remove it")
    world = make_world(seed, num_measurements=measurements)
    histories = simulate(world, patients, seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        with tqdm.tqdm(total=patients, unit=" patients", desc="writing") as bar:
            write(scratch, world, histories, seed, progress=lambda done: bar.update(done - bar.n))
        scratch.replace(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    visits, codes = histories.codes.shape[0], histories.codes.sum()
    return f"{patients:,} patients, {visits:,} visits, {codes:,} codes, {histories.died.sum():,} deaths"


def ceilings(folder: Path, seed: int) -> str:
    """Returns the scores of the oracle and of counting on held-out patients, as text."""
    world, splits = load_world(folder), pl.read_parquet(folder / events.SPLITS_FILE).sort("subject_id")
    train, held_out = (
        oracle.read_histories(folder, splits.filter(split=name)["subject_id"]) for name in ("train", "held_out")
    )
    counts, codes = train.codes.sum(axis=0) + 1, held_out.codes
    targets, visits = world.emission.min(axis=0) < 1, np.flatnonzero(held_out.owner[1:] == held_out.owner[:-1])
    visits = visits[codes[visits + 1][:, targets].any(axis=1)]
    seen = {"oracle": held_out}
    if len(world.value_deviations):
        seen["oracle without values"] = dataclasses.replace(held_out, values=None)
    scores = {name: oracle.next_visit_probabilities(world, own, targets)[visits] for name, own in seen.items()}
    scores.update({"last visit again": codes[visits], "counting": np.broadcast_to(counts, (len(visits), len(counts)))})
    truth = codes[visits + 1][:, targets].ravel()
    lines = [f"next visit: micro average precision ({len(visits):,} visits, all codes but the certain)"]
    lines += [f"  {name}: {average_precision_score(truth, s[:, targets].ravel()):.3f}" for name, s in scores.items()]
    is_masked = codes & (np.random.default_rng([seed, 3]).random(codes.shape) < 0.15)
    rows, columns = np.nonzero(is_masked)
    lines += [f"codes masked at 15%: accuracy, perplexity ({len(rows):,} codes)"]
    found = {name: oracle.masked_probabilities(world, own, is_masked)[rows] for name, own in seen.items()}
    found["counting"] = np.broadcast_to(counts / counts.sum(), found["oracle"].shape)
    for name, chances in found.items():
        perplexity = np.exp(-np.log(chances[np.arange(len(rows)), columns]).mean())
        lines += [f"  {name}: {(chances.argmax(axis=1) == columns).mean():.3f}, {perplexity:.1f}"]
    return "\n".join(lines)
