"""The table of a benchmark, and its files `benchmark.json` and `benchmark.md`."""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import numpy as np

from behrt_jax.benchmarks.rounds import Result

JSON_FILE, TABLE_FILE = "benchmark.json", "benchmark.md"
MEBIBYTE = 2**20
ACCURACIES = (0.55, 0.60)  # of masked codes, on tuning, of main jobs
STEP_COLUMNS = ("contestant", "real tokens/s", "first / this", "share of product peak", "GFLOP a step", "peak memory")
STEP_COLUMNS += ("temporaries", "parameters", "first loss")
FIGURES = ("parameters", "start_bytes", "peak_bytes", "temporary_bytes", "state_bytes", "flops")
RATE_COLUMNS = ("contestant", "a second", "first / this", "peak memory")
MEMORY_COLUMNS = ("contestant", "peak memory", "growth from the first step on", "temporaries of a step")
MEMORY_COLUMNS += ("parameters and optimizer",)
JOB_COLUMNS = ("contestant", "accuracy", "whole job, s", "peak memory")
START_COLUMNS = ("contestant", "cold start to first step, s", "warm, s", "until ready, s", "first step, s")


def summarise(values) -> dict:
    """Returns the median of values and their range."""
    values = np.asarray(values, float)
    return {"median": float(np.median(values)), "low": float(values.min()), "high": float(values.max())}


def compare(results: list[Result], peaks: np.ndarray) -> list[dict]:
    """Computes the figures of each contestant.

    Args:
      results: of all contestants.
      peaks: (rounds,) FLOP/s of a large matrix product.

    Returns:
      By contestant: rates by step; the ratio of the first contestant's rate to its own, paired by round; the share of
      the machine's matrix-product peak, for those whose FLOPs are known; memory; and how it started.
    """
    rows = []
    for result in results:
        row = {
            "name": result.name,
            "tokens_per_second": summarise(result.rates),
            "ratio": summarise(np.median(result.seconds, axis=1) / np.median(results[0].seconds, axis=1)),
            "first_loss": result.first_loss,
            "start_seconds": result.start_seconds,
            "first_step_seconds": result.first_step_seconds,
            **{name: result.measures.get(name) for name in FIGURES},
        }
        flops = result.measures.get("flops")
        row["share_of_peak"] = summarise(flops / np.median(result.seconds, axis=1) / peaks) if flops else None
        rows.append(row)
    return rows


def check_ratios(rows: list[dict], least: float) -> None:
    """Checks how many times as fast as each other contestant the first is.

    Args:
      rows: from `compare`.
      least: the smallest median ratio to accept.

    Raises:
      ValueError: a ratio is smaller.
    """
    for row in rows[1:]:
        if row["ratio"]["median"] < least:
            found = f"{_spread(row['ratio'], '.2f')} times as fast as {row['name']}"
            raise ValueError(f"--least_ratio={least:g}: {rows[0]['name']} is {found}; find what became slow")


def format_steps(rows: list[dict]) -> str:
    """Formats the figures of `compare` as a Markdown table."""
    lines = [_row(STEP_COLUMNS), "|---" * len(STEP_COLUMNS) + "|"]
    for row in rows:
        share = f"{row['share_of_peak']['median']:.0%}" if row["share_of_peak"] else ""
        flops = f"{row['flops'] / 1e9:.1f}" if row["flops"] else ""
        memory, temporaries = (_mebibytes(row[name]) for name in ("peak_bytes", "temporary_bytes"))
        cells = [row["name"], _spread(row["tokens_per_second"], ",.0f"), _spread(row["ratio"], ".2f"), share, flops]
        cells += [memory, temporaries, f"{row['parameters']:,}", f"{row['first_loss']:.3f}"]
        lines.append(_row(cells))
    return "\n".join(lines) + "\n"


def format_rates(rows: list[dict]) -> str:
    """Formats the rates of host work in the figures of `compare`: of tokens or, for `prepare`, of events."""
    lines = [_row(RATE_COLUMNS), "|---" * len(RATE_COLUMNS) + "|"]
    for row in rows:
        rates = (_spread(row["tokens_per_second"], ",.0f"), _spread(row["ratio"], ".2f"))
        lines.append(_row([row["name"], *rates, _mebibytes(row["peak_bytes"])]))
    return "\n".join(lines) + "\n"


def format_memory(rows: list[dict]) -> str:
    """Formats the memory in the figures of `compare` as a Markdown table."""
    lines = [_row(MEMORY_COLUMNS), "|---" * len(MEMORY_COLUMNS) + "|"]
    for row in rows:
        sizes = (row["peak_bytes"], row["peak_bytes"] - row["start_bytes"], row["temporary_bytes"], row["state_bytes"])
        lines.append(_row([row["name"], *map(_mebibytes, sizes)]))
    return "\n".join(lines) + "\n"


def compare_starts(names: list[str], starts: list) -> list[dict]:
    """Computes figures of starts: the first of all, which may compile, and the others, which need not."""
    rows = []
    for name, own in zip(names, np.array(starts), strict=True):
        later = own[1:] if len(own) > 1 else own
        figures = {"ready_seconds": later[:, 0], "first_step_seconds": later[:, 1], "total_seconds": later.sum(axis=1)}
        row = {"name": name, "cold_seconds": float(own[0].sum())}
        rows.append({**row, **{key: summarise(values) for key, values in figures.items()}})
    return rows


def format_starts(rows: list[dict]) -> str:
    """Formats the figures of `compare_starts` as a Markdown table."""
    lines = [_row(START_COLUMNS), "|---" * len(START_COLUMNS) + "|"]
    for row in rows:
        warm = (_spread(row[name], ".2f") for name in ("total_seconds", "ready_seconds", "first_step_seconds"))
        lines.append(_row([row["name"], f"{row['cold_seconds']:.2f}", *warm]))
    return "\n".join(lines) + "\n"


def find_time(lines: list[tuple[float, float]], least: float) -> float | None:
    """Returns when an accuracy was first reached, from (seconds, accuracy) of evaluations; None if it was not."""
    return next((seconds for seconds, accuracy in lines if accuracy >= least), None)


def compare_jobs(names: list[str], found: list[list[dict]]) -> list[dict]:
    """Computes figures of main jobs, from `rounds.run_jobs`: an accuracy is reached if it was in each round."""
    rows = []
    for name, own in zip(names, found, strict=True):
        reached = {f"{least:.2f}": [find_time(each["lines"], least) for each in own] for least in ACCURACIES}
        rows.append(
            {
                "name": name,
                "reached_seconds": {key: None if None in times else summarise(times) for key, times in reached.items()},
                "accuracy": summarise([each["lines"][-1][1] for each in own]),
                "total_seconds": summarise([each["total_seconds"] for each in own]),
                "peak_bytes": max(each["final_bytes"] for each in own),
            }
        )
    return rows


def format_jobs(rows: list[dict]) -> str:
    """Formats the figures of `compare_jobs` as a Markdown table."""
    heads = [f"{key} reached, s of training" for key in rows[0]["reached_seconds"]]
    columns = [JOB_COLUMNS[0], *heads, *JOB_COLUMNS[1:]]
    lines = [_row(columns), "|---" * len(columns) + "|"]
    for row in rows:
        times = ("not" if each is None else _spread(each, ".0f") for each in row["reached_seconds"].values())
        others = (_spread(row["accuracy"], ".3f"), _spread(row["total_seconds"], ".0f"), _mebibytes(row["peak_bytes"]))
        lines.append(_row([row["name"], *times, *others]))
    return "\n".join(lines) + "\n"


def write(folder: Path, settings: dict, rows: list[dict], table: str, peaks: np.ndarray | None) -> tuple[dict, str]:
    """Writes `benchmark.json` and `benchmark.md`; returns the content of both."""
    content = {"workload": settings, "machine": describe_machine(), "contestants": rows}
    heading = ", ".join(f"{name} {settings[name]}" for name in ("what", "tier", "vocabulary", "row_length", "rows"))
    text = f"{heading}, threads {settings['threads']}; {content['machine']}\n\n{table}"
    if peaks is not None:
        content["product_flops_per_second"] = summarise(peaks)
        text += f"\nfloat32 matrix product: {_spread(summarise(peaks / 1e9), '.0f')} GFLOP/s\n"
    (folder / JSON_FILE).write_text(json.dumps(content, indent=1) + "\n")
    (folder / TABLE_FILE).write_text(text)
    return content, text


def describe_machine() -> str:
    """Describes the processor and the versions."""
    cpu_info = Path("/proc/cpuinfo")
    text = cpu_info.read_text() if cpu_info.exists() else ""
    model = re.search(r"(?m)^model name\s*:\s*(.*)$", text)
    name = model[1] if model else platform.processor() or platform.machine()
    widest = next((f" with {found}" for found in ("avx512f", "avx2") if re.search(rf"\b{found}\b", text)), "")
    return f"{name}{widest}, Python {platform.python_version()}, JAX {version('jax')}"


def _spread(values: dict, form: str) -> str:
    return f"{values['median']:{form}} [{values['low']:{form}}, {values['high']:{form}}]"


def _row(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _mebibytes(size: int | None) -> str:
    return f"{size / MEBIBYTE:,.0f} MiB" if size else ""
