"""Simulator of patients with known truth, written as a MEDS data set."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events
from behrt_jax.simulation import world as worlds
from behrt_jax.simulation.oracle import filter_states, visit_risks
from behrt_jax.simulation.world import Histories, World

TRUTH_FILE = "truth.parquet"
START_MONTHS = (0, 840)  # age at enrolment
RISK_MONTHS = 12
FIRST_BIRTH = np.datetime64("1900-01-01", "us")
BIRTH_SPREAD_DAYS = 365 * 50
PATIENTS_PER_SHARD = 2000
_CHUNK = 4096  # visits whose codes are drawn at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Simulated(Histories):
    """Simulated histories with their truth.

    Attributes:
      state: (V,) the true state at each visit.
      end: (N,) month of age of death or of leaving; after the last visit.
      died: (N,) bool, whether the end was death.
    """

    state: np.ndarray
    end: np.ndarray
    died: np.ndarray


def simulate(world: World, num_patients: int, seed: int) -> Simulated:
    """Draws histories; deterministic given (world, num_patients, seed).

    Each patient enrols at an age drawn uniformly from `START_MONTHS`, in a state drawn from the distribution among the
    living of that age, and is observed from a visit in that month until death, leaving, or the oldest age.

    Raises:
      ValueError: `num_patients` is below 1.
    """
    if num_patients < 1:
        raise ValueError(f"num_patients: found {num_patients}; expected 1 or more")
    rng = np.random.default_rng([seed, 1])
    sex = rng.integers(0, 2, num_patients)
    start = rng.integers(START_MONTHS[0], START_MONTHS[1] + 1, num_patients)
    state = _draw(rng, worlds.state_priors(world)[:, sex, start])
    owner, month, state, end, died = _follow(world, rng, sex, start, state)
    parts = np.split(state, range(_CHUNK, len(state), _CHUNK))
    codes = np.concatenate([rng.random((len(part), len(world.codes))) < world.emission[part] for part in parts])
    noise = np.random.default_rng([seed, 5]).standard_normal((len(state), len(world.value_deviations)))
    values = (world.value_means[state] + world.value_deviations * noise).astype(np.float32).astype(float)  # as written
    values[~codes[:, world.measured]] = np.nan
    return Simulated(sex, owner, month, codes, state, end, died, values=values)


def _follow(world: World, rng: np.random.Generator, sex, start, state) -> tuple[np.ndarray, ...]:
    """Simulates all patients by month from enrolment; returns owner, month and state of visits, end and died."""
    stages = worlds.stages_of(len(world.diseases))[state].T
    end, died = np.full(len(sex), worlds.MAX_MONTHS + 1), np.zeros(len(sex), bool)
    active = np.arange(len(sex))
    visits = [(active, start, state)]
    for step in range(1, worlds.MAX_MONTHS + 1):
        active = active[start[active] + step <= worlds.MAX_MONTHS]
        month = start[active] + step
        for disease, moves in enumerate(world.moves):
            chances = moves[stages[disease, active], :, sex[active], worlds.years_of(month)]
            stages[disease, active] = _draw(rng, chances.T)
        state = worlds.state_of(stages[:, active])
        dies = rng.random(len(active)) < world.death[state, sex[active], worlds.years_of(month)]
        leaves = dies | (rng.random(len(active)) < world.leave)
        end[active[leaves]], died[active[dies]] = month[leaves], True
        has_visit = ~leaves & (rng.random(len(active)) < world.visit[state])
        visits.append((active[has_visit], month[has_visit], state[has_visit]))
        active = active[~leaves]
    owner, month, state = (np.concatenate(parts) for parts in zip(*visits, strict=True))
    order = np.lexsort((month, owner))
    return owner[order], month[order], state[order], end, died


def _draw(rng: np.random.Generator, distributions: np.ndarray) -> np.ndarray:
    """Draws a row index from each column of (S, n) distributions: (n,)."""
    running = np.cumsum(distributions, axis=0)
    return (running < rng.random(running.shape[1]) * running[-1]).sum(axis=0)


def select(histories: Simulated, patients: np.ndarray) -> Simulated:
    """Selects the patients at ascending indices (n,), and renumbers them."""
    visits = np.isin(histories.owner, patients)
    columns = {name: getattr(histories, name)[visits] for name in ("month", "codes", "state", "values")}
    columns.update({name: getattr(histories, name)[patients] for name in ("sex", "end", "died")})
    return Simulated(owner=np.searchsorted(patients, histories.owner[visits]), **columns)


def write(folder: str | Path, world: World, histories: Simulated, seed: int, progress: Callable = lambda done: 0):
    """Writes a MEDS 0.4 data set, and with it `world.npz` and `truth.parquet`; overwrites files of the same names.

    The subject id is the patient's index + 1, and `seed` determines the birth dates. `progress` is called with the
    number of patients written so far.
    """
    folder, count = Path(folder), len(histories.sex)
    births = FIRST_BIRTH + np.random.default_rng([seed, 2]).integers(0, BIRTH_SPREAD_DAYS, count).astype("m8[D]")
    splits = events.make_splits(np.arange(1, count + 1))
    truths, done = [], 0
    for split in events.SPLITS:
        (folder / "data" / split).mkdir(parents=True, exist_ok=True)
        members = np.flatnonzero((splits["split"] == split).to_numpy())
        for number, start in enumerate(range(0, len(members), PATIENTS_PER_SHARD)):
            patients = members[start : start + PATIENTS_PER_SHARD]
            part = select(histories, patients)
            file = folder / "data" / split / f"{number}.parquet"
            _to_events(world, part, patients + 1, births[patients]).write_parquet(file)
            truths.append(_to_truth(world, part, patients + 1, births[patients]))
            progress(done := done + len(patients))
    pl.concat(truths).sort("subject_id", "visit").write_parquet(folder / TRUTH_FILE)
    worlds.save_world(folder, world)
    _write_metadata(folder, world, splits, seed)


def _write_metadata(folder: Path, world: World, splits: pl.DataFrame, seed: int) -> None:
    (folder / events.SPLITS_FILE).parent.mkdir(exist_ok=True)
    splits.write_parquet(folder / events.SPLITS_FILE)
    descriptions = {}
    for code in world.codes:
        kind, _, name = code.split("//")
        disease, _, number = name.rpartition("-")
        descriptions[code] = f"simulated {kind.lower()}" + (f" {number} of {disease}" if disease else "")
    descriptions.update({f"GENDER//{sex}": f"sex: {sex}" for sex in worlds.SEXES})
    descriptions.update({events.BIRTH: "birth", events.DEATH: "death"})
    codes = pl.DataFrame({"code": list(descriptions), "description": list(descriptions.values())})
    codes.with_columns(parent_codes=pl.lit(None, pl.List(pl.String))).write_parquet(folder / "metadata/codes.parquet")
    metadata = {"dataset_name": f"simulated-{splits.height}-{seed}", "dataset_version": "1.0", "meds_version": "0.4.1"}
    metadata |= {"etl_name": "behrt_jax.data.simulate", "etl_version": "1.0"}
    (folder / "metadata" / "dataset.json").write_text(json.dumps(metadata, indent=1))


def _to_events(world: World, histories: Simulated, subject_ids: np.ndarray, births: np.ndarray) -> pl.DataFrame:
    """Returns MEDS events with a column `visit_id`, from ascending subject ids and births (N,)."""
    names = [*world.codes, *(f"GENDER//{sex}" for sex in worlds.SEXES), events.BIRTH, events.DEATH]
    gender, _, birth, death = range(len(world.codes), len(names))
    people, died = np.arange(len(births)), np.flatnonzero(histories.died)
    (visits, columns), owners, months = np.nonzero(histories.codes), histories.owner, histories.month
    values = np.full(histories.codes.shape, np.nan)
    values[:, world.measured] = histories.values
    parts = [  # owner, time, code, visit, value
        (people, np.full(len(births), np.datetime64("NaT", "us")), gender + histories.sex, people * 0, people * np.nan),
        (people, births, np.full(len(births), birth), people * 0, people * np.nan),
        (owners[visits], _times(births, owners, months)[visits], columns, visits + 1, values[visits, columns]),
        (died, _times(births, died, histories.end[died]), np.full(len(died), death), died * 0, died * np.nan),
    ]
    owner, time, code, visit, value = (np.concatenate(column) for column in zip(*parts, strict=True))
    table = pl.DataFrame({"subject_id": subject_ids[owner], "time": time, "code": code, "visit_id": visit})
    table = table.with_columns(value=value).sort("subject_id", "time", nulls_last=False, maintain_order=True)
    return table.select(
        pl.col("subject_id").cast(pl.Int64),
        pl.col("time").cast(pl.Datetime("us")),
        pl.Series("code", names).gather(table["code"]),
        pl.col("value").fill_nan(None).cast(pl.Float32).alias("numeric_value"),
        pl.when(pl.col("visit_id") > 0).then(pl.col("visit_id").cast(pl.Int64)),
    )


def _to_truth(world: World, histories: Simulated, subject_ids: np.ndarray, births: np.ndarray) -> pl.DataFrame:
    """Returns the truth table, one row per visit.

    Columns are `subject_id, time, visit` (number from 0); `stage_DISEASE` (0 none, 1 early, 2 late); the risk of death
    within 12 months given the true state, `death_risk_state`, and given sex and the visits so far, `death_risk_seen`;
    `months_left` until death, leaving or the oldest age; and `dies`, whether follow-up ends in death.
    """
    risks = visit_risks(world, histories, RISK_MONTHS)
    stages = worlds.stages_of(len(world.diseases))[histories.state]
    rows, owner = np.arange(len(risks)), histories.owner
    columns = {"subject_id": subject_ids[owner], "time": _times(births, owner, histories.month)}
    columns["visit"] = (rows - histories.first_visits()[owner]).astype(np.int32)
    columns.update({f"stage_{name}": stages[:, d].astype(np.int8) for d, name in enumerate(world.diseases)})
    columns["death_risk_state"] = risks[rows, histories.state]
    columns["death_risk_seen"] = (filter_states(world, histories) * risks).sum(axis=1)
    columns |= {"months_left": histories.end[owner] - histories.month, "dies": histories.died[owner]}
    return pl.DataFrame(columns).cast({"subject_id": pl.Int64, "time": pl.Datetime("us"), "months_left": pl.Int32})


def _times(births: np.ndarray, owner: np.ndarray, month: np.ndarray) -> np.ndarray:
    return births[owner] + (month * worlds.SECONDS_PER_MONTH).astype("m8[s]")
