"""The world of simulated patients: all probabilities of diseases with stages, visits, codes and death.

A patient is a hidden Markov chain over months of age. Each disease is in a stage (none, early, late), and the stages of
all diseases form the state. `simulator` draws patients from a world, `oracle` inverts it exactly; docs/simulator.md has
the equations.
"""

import dataclasses
import zipfile
from collections.abc import Collection
from pathlib import Path

import numpy as np

STAGES = 3
MONTHS_PER_YEAR = 12
MAX_YEARS = 110
MAX_MONTHS = MAX_YEARS * MONTHS_PER_YEAR - 1  # the oldest age, in months
SECONDS_PER_MONTH = 2_629_800  # 30.4375 days
SEXES = ("F", "M")
DISEASES = ("diabetes", "asthma", "heart", "depression", "kidney", "migraine")
WORLD_FILE = "world.npz"
SILENT = 0.002  # factor of the log chance that a disease is coded, where measurements tell of it
NUM_CODES = (40, 50)  # codes of any visit; codes of each disease, a quarter of them shared with the next disease
MEASUREMENTS = ("hba1c", "eosinophils", "bnp", "cortisol", "creatinine", "cgrp")  # of each disease; further: others
_KINDS = ("CONDITION", "PROCEDURE", "MEDICATION")


@dataclasses.dataclass(frozen=True, eq=False)
class World:
    """All probabilities of a simulated population; D diseases, S = 3^D states, C codes, Y years, M measurements.

    States are numbered in base 3: state s has disease d in stage `s // 3**(D - 1 - d) % 3`.

    Attributes:
      diseases: D names.
      codes: C names.
      moves: (D, 3, 3, 2, Y) monthly probability of moving from stage to stage, by sex (0 F, 1 M) and year of age.
      death: (S, 2, Y) monthly probability of death.
      leave: (1,) monthly probability of leaving observation.
      visit: (S,) monthly probability of a visit.
      emission: (S, C) probability of each code at a visit; codes are independent given the state.
      value_means: (S, M) mean value of each measurement; the last M codes are measurements.
      value_deviations: (M,) standard deviations of the values, which are normal and independent given the state.
    """

    diseases: tuple[str, ...]
    codes: tuple[str, ...]
    moves: np.ndarray
    death: np.ndarray
    leave: np.ndarray
    visit: np.ndarray
    emission: np.ndarray
    value_means: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((STAGES ** len(DISEASES), 0)))
    value_deviations: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    @property
    def measured(self) -> slice:
        """Returns the columns of the codes that carry a value: M."""
        return slice(len(self.codes) - len(self.value_deviations), None)

    def advance(self, states: np.ndarray, sex: np.ndarray, month: np.ndarray, backward: bool = False) -> np.ndarray:
        """Advances (S, n) distributions of the state by a month, to the months of age (n,), each column on its own.

        With `backward`, maps (S, n) functions of the state to their expectation a month before.
        """
        moves = np.ascontiguousarray(self.moves[..., sex, years_of(month)])
        moves = moves.swapaxes(1, 2) if backward else moves
        for disease, chance in enumerate(moves[:, :, :, None]):
            source = states.reshape(STAGES**disease, STAGES, 1, STAGES ** (len(moves) - 1 - disease), -1)
            states = source[:, 0] * chance[0] + source[:, 1] * chance[1] + source[:, 2] * chance[2]
        return states.reshape(len(self.visit), -1)

    def dies(self, sex: np.ndarray, month: np.ndarray) -> np.ndarray:
        """Returns the probability of death in each state at the months of age: (S, n)."""
        return self.death[:, sex, years_of(month)]

    def stays(self, sex: np.ndarray, month: np.ndarray) -> np.ndarray:
        """Returns the probability of neither dying nor leaving in each state at the months of age: (S, n)."""
        return (1 - self.dies(sex, month)) * (1 - self.leave)


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """Observed histories of N patients with V visits in total; each has one visit or more.

    Attributes:
      sex: (N,) 0 F, 1 M.
      owner: (V,) patient of each visit, ascending.
      month: (V,) month of age of each visit, ascending within a patient.
      codes: (V, C) bool, the recorded codes.
      values: (V, M), NaN where not measured; None where values are not known.
    """

    sex: np.ndarray
    owner: np.ndarray
    month: np.ndarray
    codes: np.ndarray
    values: np.ndarray | None = dataclasses.field(default=None, kw_only=True)

    def first_visits(self) -> np.ndarray:
        """Returns the index of each patient's first visit: (N,)."""
        return np.searchsorted(self.owner, np.arange(len(self.sex)))

    def last_visits(self) -> np.ndarray:
        """Returns the index of each patient's last visit: (N,)."""
        return np.searchsorted(self.owner, np.arange(len(self.sex)), side="right") - 1


def years_of(month: np.ndarray | int) -> np.ndarray:
    """Returns the year of age of each month; the oldest year for all later months."""
    return np.minimum(month // MONTHS_PER_YEAR, MAX_YEARS - 1)


def state_of(stages: np.ndarray) -> np.ndarray:
    """Returns the state numbers of (D, n) stages: (n,)."""
    return STAGES ** np.arange(len(stages))[::-1] @ stages


def stages_of(num_diseases: int) -> np.ndarray:
    """Returns the stage of each disease in each state: (S, D).

    >>> stages_of(2)[5].tolist()
    [1, 2]
    """
    return np.stack(np.unravel_index(np.arange(STAGES**num_diseases), [STAGES] * num_diseases), axis=1)


def state_priors(world: World) -> np.ndarray:
    """Returns the distribution of the state by sex and month of age among the living: (S, 2, months)."""
    sexes = np.arange(2)
    states = np.zeros((len(world.visit), 2))
    states[0] = 1.0  # born without disease
    priors = [states]
    for month in range(1, MAX_MONTHS + 1):
        months = np.full(2, month)
        states = world.advance(states, sexes, months) * (1 - world.dies(sexes, months))
        states = states / states.sum(axis=0)
        priors.append(states)
    return np.stack(priors, axis=2)


def make_world(seed: int, num_diseases: int = 4, num_measurements: int = 0) -> World:
    """Draws a world of 1 to 6 diseases, determined by the seed; cost grows with 3^D.

    With measurements, the mean value of the first D depends on the stage of one disease each, that of further ones on
    nothing. Whether one is taken does not depend on the state, so that its value alone informs. Every second disease,
    from the first on, then seldom has a code.

    Onset rises with age and differs between the sexes; late stages bring more visits, other codes and more deaths;
    every second disease can also improve. Neighbouring diseases and stages share codes, so that no single code
    identifies a state.

    Raises:
      ValueError: the number of diseases or measurements is out of range.
    """
    if num_measurements < 0:
        raise ValueError(f"num_measurements: found {num_measurements}; expected 0 or more")
    if not 1 <= num_diseases <= len(DISEASES):
        raise ValueError(f"num_diseases: found {num_diseases}; expected 1 to {len(DISEASES)}")
    rng = np.random.default_rng([seed, 0])
    names, stages = DISEASES[:num_diseases], stages_of(num_diseases)
    moves = np.stack([_draw_moves(rng, recovers=disease % 2 == 1) for disease in range(num_diseases)])
    years = np.arange(MAX_YEARS)
    baseline = 2e-5 * np.exp(years / 11.0) * np.array([[0.8], [1.2]])
    log_excess = _sum_over(_stage_terms(rng, num_diseases, [0.0, 0.4], [0.8, 1.6]), stages)
    death = np.minimum(baseline * np.exp(log_excess)[:, None, None], 0.5)
    log_no_visit = _sum_over(np.log1p(-_stage_terms(rng, num_diseases, [0.05, 0.1], [0.15, 0.3])), stages)
    silent = (np.arange(num_diseases) % 2 == 0) & (num_measurements > 0)
    codes, emission = _draw_codes(rng, names, stages, np.where(silent, SILENT, 1.0))
    taken, means, deviations = _draw_measurements(np.random.default_rng([seed, 4]), num_measurements, stages)
    places = range(num_measurements)
    tests = [f"LAB//SIM//{(MEASUREMENTS[:num_diseases] + ('other',))[min(p, num_diseases)]}-{p:02d}" for p in places]
    emission = np.concatenate([emission, np.broadcast_to(taken, (len(stages), num_measurements))], axis=1)
    visit = 1 - 0.9 * np.exp(log_no_visit)
    return World(names, (*codes, *tests), moves, death, np.array([0.003]), visit, emission, means, deviations)


def _draw_moves(rng: np.random.Generator, recovers: bool) -> np.ndarray:
    """Draws the monthly stage transitions of one disease: (3, 3, 2, Y)."""
    moves = np.zeros((STAGES, STAGES, 2, MAX_YEARS))
    for sex in range(2):
        middle, width = rng.uniform(25, 60), rng.uniform(8, 15)
        onset = rng.uniform(0.003, 0.007) / (1 + np.exp(-(np.arange(MAX_YEARS) - middle) / width))
        worsening, recovery = rng.uniform(0.01, 0.03), rng.uniform(0.005, 0.02, 2) * recovers
        moves[0, :, sex] = 1 - onset, onset, 0 * onset
        moves[1, :, sex] = np.array([recovery[0], 1 - recovery[0] - worsening, worsening])[:, None]
        moves[2, 1:, sex] = np.array([recovery[1], 1 - recovery[1]])[:, None]
    return moves


def _stage_terms(rng: np.random.Generator, count: int, early: list[float], late: list[float]) -> np.ndarray:
    """Draws a term for each disease and stage, 0 without disease: (D, 3)."""
    return rng.uniform([0.0, early[0], late[0]], [0.0, early[1], late[1]], (count, STAGES))


def _sum_over(terms: np.ndarray, stages: np.ndarray) -> np.ndarray:
    """Sums the (D, 3, ...) terms over the diseases of each state: (S, ...)."""
    return np.stack([terms[disease][stages[:, disease]] for disease in range(len(terms))]).sum(axis=0)


def _draw_codes(rng, names, stages, strengths) -> tuple[tuple[str, ...], np.ndarray]:
    """Draws the codes and their emission (S, C): a noisy-or of common codes and the codes of each disease.

    The log chance that a code is absent is multiplied by the disease's strength: (D,).
    """
    num_common, num_per_disease = NUM_CODES
    common_chances = 0.005 + 0.25 * rng.beta(0.25, 4.0, num_common)
    log_absence = np.zeros((len(names), STAGES, num_common + len(names) * num_per_disease))
    for disease in range(len(names)):
        disease_codes = num_common + disease * num_per_disease + np.arange(num_per_disease)
        shared_codes = num_common + (disease - 1) % len(names) * num_per_disease + np.arange(num_per_disease // 4)
        log_absence[disease, 1:, disease_codes] += np.log1p(-_draw_chances(rng, num_per_disease, 4)).T
        log_absence[disease, 1:, shared_codes] += np.log1p(-_draw_chances(rng, num_per_disease // 4, 3)).T
    log_absence = _sum_over(log_absence * strengths[:, None, None], stages)
    log_absence[:, :num_common] += np.log1p(-common_chances)
    emission = np.minimum(1 - np.exp(log_absence) * (1 - 5e-4), 0.95)  # any code can appear without its disease
    places = range(len(names) * num_per_disease)
    codes = [f"CONDITION//SIM//common-{place:02d}" for place in range(num_common)]
    codes += [f"{_KINDS[p % 3]}//SIM//{names[p // num_per_disease]}-{p % num_per_disease:02d}" for p in places]
    return ("ENCOUNTER//SIM//visit", *codes), np.concatenate([np.ones((len(stages), 1)), emission], axis=1)


def _draw_measurements(rng, count: int, stages: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws how often each measurement is taken, (M,), its mean in each state, (S, M), and its deviation, (M,)."""
    taken, normal, deviations = (rng.uniform(low, high, count) for low, high in ((0.3, 0.7), (50, 150), (5, 15)))
    shifts = rng.choice([-1, 1], (count, 1)) * rng.uniform([0.0, 0.5, 1.2], [0.0, 1.0, 2.0], (count, STAGES))
    shifts[stages.shape[1] :] = 0.0
    disease = np.arange(count) % stages.shape[1]
    return taken, normal + deviations * shifts[np.arange(count), stages[:, disease]], deviations


def _draw_chances(rng: np.random.Generator, count: int, num_core: int) -> np.ndarray:
    """Draws code probabilities in the early and late stage, (2, count); the stages share half of their core codes."""
    chances = rng.beta(0.15, 15.0, (2, count))
    order = rng.permutation(count // 2)  # this half also holds the codes shared with the neighbour
    for stage in range(2):
        core = order[stage * (num_core // 2) :][:num_core]
        chances[stage, core] = rng.uniform(0.3, 0.95, num_core)
    return chances


def keep_measurements(world: World, histories: Histories, read: Collection[str]) -> tuple[World, Histories]:
    """Returns a world and its histories as one sees them who reads these measurements alone.

    This is exact: measurements are independent given the state, and whether one is taken does not depend on it.
    """
    first = world.measured.start
    places = [place for place, code in enumerate(world.codes[first:]) if code in read]
    columns = [*range(first), *(first + place for place in places)]
    fields = {"codes": tuple(world.codes[column] for column in columns), "emission": world.emission[:, columns]}
    fields |= {"value_means": world.value_means[:, places], "value_deviations": world.value_deviations[places]}
    values = None if histories.values is None else histories.values[:, places]
    seen = dataclasses.replace(histories, codes=histories.codes[:, columns], values=values)
    return dataclasses.replace(world, **fields), seen


def save_world(folder: str | Path, world: World) -> None:
    """Writes `world.npz` to a folder."""
    np.savez_compressed(Path(folder) / WORLD_FILE, **vars(world))


def load_world(folder: str | Path) -> World:
    """Reads the world that `save_world` wrote to a folder.

    Raises:
      ValueError: the file is missing, cannot be read, or lacks an array.
    """
    file = Path(folder) / WORLD_FILE
    cure = "give a folder that experiments.simulate wrote, or simulate again"
    if not file.is_file():
        raise ValueError(f"{file}: no such file; expected the probabilities behind simulated data; {cure}")
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: not a readable .npz file of arrays; {cure}") from error
    fields = dataclasses.fields(World)
    required = [each.name for each in fields if each.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in arrays]:
        raise ValueError(f"{file}: {', '.join(missing)} missing (found {', '.join(arrays) or 'nothing'}); {cure}")
    arrays.update({name: tuple(arrays[name].tolist()) for name in ("diseases", "codes")})
    return World(**{each.name: arrays[each.name] for each in fields if each.name in arrays})
