"""Runs a benchmark from its settings to its table."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import jax

from behrt_jax.benchmarks import contestants, report, rounds, workload
from behrt_jax.benchmarks.workload import Workload

logger = logging.getLogger(__name__)
WHAT = ("step", "memory", "inference", "embed", "host", "prepare", "startup", "main_job")
TABLES = {"memory": report.format_memory, "host": report.format_rates, "prepare": report.format_rates}


def benchmark(
    work: Workload,
    chosen: list[contestants.Contestant],
    output: Path,
    *,
    num_rounds: int = 5,
    steps: int = 5,
    least_ratio: float = 0.0,
    prepared_dir: str = "prepared",
    data: str = "",
) -> dict:
    """Runs contestants on the same work in interleaved rounds; writes `benchmark.json` and `benchmark.md`.

    Args:
      work: what to run.
      chosen: from `contestants.choose`.
      output: output folder.
      num_rounds: rounds; in each, every contestant runs once.
      steps: steps per contestant and round; not used for startup and main_job.
      least_ratio: how many times as fast as every other contestant the first must be, by the median; not used for
        startup and main_job.
      prepared_dir: the cache of prepared data.
      data: a MEDS data set; the recipe's if empty.

    Returns:
      The content of `benchmark.json`.

    Raises:
      ValueError: a setting is not valid, a contestant cannot run, or the first is not as fast as `least_ratio` asks.
    """
    if work.what not in WHAT:
        raise ValueError(f"--what: found {work.what!r}; expected one of {', '.join(WHAT)}")
    for name, number in (("rounds", num_rounds), ("steps", steps)):
        if number < 1:
            raise ValueError(f"--{name}: found {number}; expected 1 or more")
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = workload.write(work, folder, prepared_dir, data)
        settings |= {"num_rounds": num_rounds, "steps": steps}
        if work.what == "startup":
            with _empty_compilation_cache(folder):
                starts = rounds.run_starts(chosen, folder, num_rounds)
            rows, peaks = report.compare_starts([item.name for item in chosen], starts), None
            table = report.format_starts(rows)
        elif work.what == "main_job":
            found = rounds.run_jobs(chosen, folder, num_rounds)
            rows, peaks = report.compare_jobs([item.name for item in chosen], found), None
            table = report.format_jobs(rows)
        else:
            results, peaks = rounds.run(chosen, folder, num_rounds, steps)
            rows = report.compare(results, peaks)
            table = TABLES.get(work.what, report.format_steps)(rows)
    content, text = report.write(output, settings, rows, table, peaks)
    logger.info(f"{text}\nwritten: {output / report.JSON_FILE}, {output / report.TABLE_FILE}")
    if work.what not in ("startup", "main_job"):
        report.check_ratios(rows, least_ratio)
    return content


@contextlib.contextmanager
def _empty_compilation_cache(folder: Path) -> Iterator[None]:
    """Gives contestants a cache folder of their own, so that their first start compiles and later ones do not."""
    before = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_compilation_cache_dir", str(folder / "compiled"))
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
