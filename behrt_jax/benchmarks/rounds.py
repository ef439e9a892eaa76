"""Interleaved rounds: each contestant runs some steps in turn, so that a busy machine slows all of them alike."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from behrt_jax.benchmarks import contestants as processes
from behrt_jax.benchmarks.contestants import Contestant

logger = logging.getLogger(__name__)
WARM_UP = 2  # steps before the first round
PRODUCTS = 5  # matrix products per round; the fastest counts
MASKED_TOLERANCE = 0.1  # share; contestants draw their masks each by itself


class Result(NamedTuple):
    """The figures of a contestant.

    Attributes:
      name: of the contestant.
      seconds: (rounds, steps) of each step.
      rates: (rounds, steps) real tokens a second.
      first_loss: loss of the first step.
      start_seconds: from the start of the process until it was ready for its first step.
      first_step_seconds: of the first step, compilation included.
      measures: what its `measure` returned, and `peak_bytes`.
    """

    name: str
    seconds: np.ndarray
    rates: np.ndarray
    first_loss: float
    start_seconds: float
    first_step_seconds: float
    measures: dict


def run(contestants: list[Contestant], folder: Path, rounds: int, steps: int) -> tuple[list[Result], np.ndarray]:
    """Runs all contestants in turn.

    Args:
      contestants: from `contestants.choose`.
      folder: holds the workload.
      rounds: number of rounds.
      steps: steps per contestant and round.

    Returns:
      A result per contestant; and (rounds,) FLOP/s of a large matrix product, measured between the rounds.

    Raises:
      ValueError: a contestant cannot run, or did other work than the first.
    """
    with processes.running([*contestants, processes.PRODUCT], folder) as (*running, product):
        names = [contestant.name for contestant in contestants]
        read = [processes.ask(item, read=True) for item in running]
        check_tokens(names, read)
        first = [processes.ask(item, steps=WARM_UP) for item in (*running, product)]
        check_masks(names, [sum(own["masked"]) for own in first[:-1]])
        seconds, peaks = [[] for _ in running], []
        for number in range(rounds):
            for item, own in zip(running, seconds, strict=True):
                own.append(processes.ask(item, steps=steps)["seconds"])
            peaks.append(min(processes.ask(product, steps=PRODUCTS)["seconds"]))
            logger.info(f"round {number + 1} of {rounds}")
        measures = [processes.ask(item, measure=True) for item in running]
        peaks = processes.ask(product, measure=True)["flops"] / np.array(peaks)
    order = WARM_UP + np.arange(rounds * steps).reshape(rounds, steps)
    tokens = np.array(read[0]["tokens"])[order % len(read[0]["tokens"])]
    results = []
    for item, own, begin, further in zip(running, map(np.array, seconds), first, measures, strict=False):
        start = (begin["losses"][0], item.start_seconds, begin["seconds"][0])
        results.append(Result(item.contestant.name, own, tokens / own, *start, further))
    return results, peaks


def run_starts(contestants: list[Contestant], folder: Path, rounds: int) -> list[list[tuple[float, float]]]:
    """Starts each contestant anew in every round, up to its first step.

    Returns:
      Per contestant and round, the seconds until it was ready and those of the first step.
    """
    starts = [[] for _ in contestants]
    for number in range(rounds):
        for contestant, own in zip(contestants, starts, strict=True):
            item = processes.launch(contestant, folder)
            try:
                own.append((item.start_seconds, processes.ask(item, steps=1)["seconds"][0]))
            finally:
                processes.stop(item)
        logger.info(f"round {number + 1} of {rounds}")
    return starts


def run_jobs(contestants: list[Contestant], folder: Path, rounds: int) -> list[list[dict]]:
    """Runs the main job of each contestant once in every round; returns what each measured, by round."""
    found = [[] for _ in contestants]
    for number in range(rounds):
        for contestant, own in zip(contestants, found, strict=True):
            with processes.running([contestant], folder) as (item,):
                own.append(processes.ask(item, measure=True))
        logger.info(f"round {number + 1} of {rounds}")
    return found


def check_tokens(names: list[str], read: list[dict]) -> None:
    """Checks that contestants read the same tokens; `read` is from `worker.read_all`.

    Raises:
      ValueError: a contestant differs from the first.
    """
    for name, own in zip(names[1:], read[1:], strict=True):
        if own != read[0]:
            counts = f"{sum(own['tokens']):,} tokens, {names[0]} {sum(read[0]['tokens']):,}"
            raise ValueError(f"{name} reads other tokens than {names[0]}: {counts}; their rates would not compare")


def check_masks(names: list[str], masked: list[int]) -> None:
    """Checks that contestants mask about as many codes.

    Raises:
      ValueError: a contestant differs from the first.
    """
    for name, number in zip(names[1:], masked[1:], strict=True):
        if abs(number - masked[0]) > MASKED_TOLERANCE * masked[0]:
            counts = f"{number:,} codes, {names[0]} {masked[0]:,}"
            raise ValueError(f"{name} masks {counts}; their rates would not compare")
