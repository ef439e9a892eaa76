import dataclasses
import json

import meds as standard
import numpy as np
import polars as pl
import pyarrow.parquet
import pytest

from behrt_jax.data import dataset, events
from behrt_jax.data.prepare import prepare
from behrt_jax.simulation import oracle
from behrt_jax.simulation import world as worlds
from behrt_jax.simulation.simulator import FIRST_BIRTH, select, simulate, write
from tests.data.handmade import MedsFolder, assert_clear

WORLD = worlds.make_world(0)
PATIENTS = simulate(WORLD, 300, 0)
STRICT = 4.5  # standard errors


def test_simulate_is_a_function_of_its_seed():
    again, other = simulate(WORLD, 300, 0), simulate(WORLD, 300, 1)
    for field in dataclasses.fields(PATIENTS):
        np.testing.assert_array_equal(getattr(PATIENTS, field.name), getattr(again, field.name))
    assert not np.array_equal(PATIENTS.sex, other.sex) and len(PATIENTS.owner) != len(other.owner)


def test_histories_are_in_order():
    owner, month = PATIENTS.owner, PATIENTS.month
    np.testing.assert_array_equal(np.unique(owner), np.arange(300))
    assert (np.diff(owner) >= 0).all() and (np.diff(month)[np.diff(owner) == 0] > 0).all()
    assert (month[PATIENTS.last_visits()] < PATIENTS.end).all()
    assert (month[PATIENTS.first_visits()] <= 840).all() and PATIENTS.codes[:, 0].all()
    assert 25 < len(owner) / 300 < 35 and 4 < PATIENTS.codes.sum() / len(owner) < 7


def test_at_least_one_patient():
    with pytest.raises(ValueError) as error:
        simulate(WORLD, 0, 0)
    assert_clear(error, "num_patients: found 0; expected 1 or more")


def test_codes_are_drawn_from_the_state():
    expected = WORLD.emission[PATIENTS.state]
    spread = np.sqrt((expected * (1 - expected)).sum(axis=0))[1:]
    assert np.abs((PATIENTS.codes - expected).sum(axis=0)[1:] / spread).max() < STRICT
    busy = WORLD.emission[PATIENTS.state[:, None], 1:] > 0.3
    assert PATIENTS.codes[:, 1:][busy[:, 0]].mean() > 0.5


def test_stages_visits_and_deaths_come_at_the_worlds_rates():
    """In a world that is the same at every age: by counting months, not by the oracle."""
    moves = np.zeros_like(WORLD.moves[:1])
    moves[0] = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.2], [0.3, 0.0, 0.7]])[..., None, None]
    death = np.broadcast_to(np.array([0.0, 0.01, 0.03])[:, None, None], (3, 2, worlds.MAX_YEARS))
    visit = np.array([1.0, 1.0, 1.0])
    world = worlds.World(("x",), ("a",), moves, death, np.array([0.01]), visit, np.ones((3, 1)))
    found = simulate(world, 2000, 0)
    follows = np.flatnonzero(np.diff(found.owner) == 0)
    np.testing.assert_array_equal(np.diff(found.month)[follows], 1)
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (found.state[follows], found.state[follows + 1]), 1)
    goes_on = moves[0, :, :, 0, 0] * (1 - death[:, 0, 0]) * 0.99
    starts = np.bincount(found.state, minlength=3)[:, None]
    assert (np.abs(pairs - starts * goes_on) < STRICT * np.sqrt(starts * goes_on * (1 - goes_on)) + 1e-6).all()
    dies = (starts[:, 0] @ moves[0, :, :, 0, 0] * death[:, 0, 0]).sum()
    assert abs(found.died.sum() - dies) < STRICT * np.sqrt(dies)


def test_sex_and_age_decide_the_months():
    world = dataclasses.replace(WORLD, leave=np.zeros(1), death=np.zeros_like(WORLD.death))
    world.death[:, 1, 75] = 1 - 1e-12  # men die at 75, women never
    found = simulate(world, 60, 0)
    np.testing.assert_array_equal(found.died, found.sex == 1)
    np.testing.assert_array_equal(found.end, np.where(found.sex == 1, 75 * 12, worlds.MAX_MONTHS + 1))
    assert found.month.max() > 100 * 12
    gone = simulate(dataclasses.replace(WORLD, leave=np.ones(1), death=world.death), 60, 0)
    np.testing.assert_array_equal(gone.end, gone.month + 1)
    assert not gone.died.any()


def test_select():
    some = select(PATIENTS, np.array([2, 5]))
    np.testing.assert_array_equal(some.codes[some.owner == 1], PATIENTS.codes[PATIENTS.owner == 5])
    np.testing.assert_array_equal(some.end, PATIENTS.end[[2, 5]])
    assert set(some.owner) == {0, 1}


# What is written.
@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    place = MedsFolder(tmp_path_factory.mktemp("place"), "simulated")
    done = []
    write(place.root, WORLD, PATIENTS, seed=0, progress=done.append)
    assert done[-1] == 300 and done == sorted(done)
    return place


def read(folder) -> pl.DataFrame:
    return pl.concat([events.read_shard(shard, ("visit_id",)) for shard in events.find_shards(folder.root)])


def test_files_keep_to_the_standard(simulated):
    for shard in events.find_shards(simulated.root):
        table = pyarrow.parquet.read_table(shard)
        standard.DataSchema.validate(standard.DataSchema.align(table))
        splits = pl.read_parquet(simulated.root / events.SPLITS_FILE).filter(split=shard.parent.name)
        assert set(table["subject_id"].to_pylist()) == set(splits["subject_id"])
    for name, schema in (("codes", standard.CodeMetadataSchema), ("subject_splits", standard.SubjectSplitSchema)):
        table = pyarrow.parquet.read_table(simulated.root / "metadata" / f"{name}.parquet")
        schema.validate(schema.align(table))
    about = json.loads((simulated.root / "metadata" / "dataset.json").read_text())
    standard.DatasetMetadataSchema.validate(about)
    described = pl.read_parquet(simulated.root / "metadata" / "codes.parquet")
    assert set(read(simulated)["code"]) <= set(described["code"])
    assert described["description"].null_count() == 0
    assert "simulated medication 05 of diabetes" in described["description"].to_list()


def test_writing_is_a_function_of_the_seed(simulated, tmp_path):
    write(tmp_path / "again", WORLD, PATIENTS, seed=0)
    write(tmp_path / "other", WORLD, PATIENTS, seed=1)
    names = sorted(file.relative_to(simulated.root) for file in simulated.root.rglob("*.parquet"))
    assert len(names) >= 6
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (simulated.root / name).read_bytes()
    truths = [pl.read_parquet(tmp_path / name / "truth.parquet") for name in ("again", "other")]
    assert (truths[0]["time"] != truths[1]["time"]).any() and truths[0].drop("time").equals(truths[1].drop("time"))


def test_events_tell_what_was_simulated(simulated):
    found = read(simulated)
    counts = found["code"].value_counts()
    number = dict(zip(counts["code"], counts["count"], strict=True))
    assert number[events.BIRTH] == 300 and number[events.DEATH] == PATIENTS.died.sum()
    assert number["GENDER//M"] == PATIENTS.sex.sum() and found["time"].null_count() == 300
    coded = found.filter(pl.col("visit_id").is_not_null())
    assert coded.height == PATIENTS.codes.sum()
    assert coded.group_by("subject_id", "visit_id").agg(times=pl.col("time").n_unique())["times"].max() == 1
    assert coded.select("subject_id", "visit_id").n_unique() == len(PATIENTS.owner)
    born = found.filter(code=events.BIRTH).select("subject_id", born="time")
    died = found.filter(code=events.DEATH).join(born, on="subject_id").sort("subject_id")
    days = (died["time"] - died["born"]).dt.total_seconds() / 86_400
    np.testing.assert_array_equal(days, PATIENTS.end[PATIENTS.died] * 30.4375)
    assert (born["born"] >= FIRST_BIRTH.item()).all() and born["born"].n_unique() > 250
    last = coded.group_by("subject_id").agg(last=pl.col("time").max())
    assert (died.join(last, on="subject_id").select(pl.col("time") > pl.col("last"))).to_series().all()


def test_truth_agrees_with_the_events(simulated):
    truth, found = pl.read_parquet(simulated.root / "truth.parquet"), read(simulated)
    assert truth.height == len(PATIENTS.owner)
    times = found.filter(pl.col("visit_id").is_not_null()).select("subject_id", "time").unique()
    assert truth.select("subject_id", "time").equals(times.sort("subject_id", "time"))
    np.testing.assert_array_equal(truth["subject_id"], PATIENTS.owner + 1)
    first = truth.group_by("subject_id", maintain_order=True).first()
    assert (first["visit"] == 0).all() and truth["visit"].max() == np.bincount(PATIENTS.owner).max() - 1
    stages = truth.select(f"stage_{name}" for name in WORLD.diseases).to_numpy()
    np.testing.assert_array_equal(stages.astype(int) @ [27, 9, 3, 1], PATIENTS.state)
    risks = truth.select("death_risk_state", "death_risk_seen").to_numpy()
    assert (risks > 0).all() and (risks < 1).all() and np.corrcoef(risks.T)[0, 1] > 0.8
    ends = PATIENTS.end[PATIENTS.owner]
    np.testing.assert_array_equal(PATIENTS.month + truth["months_left"].to_numpy(), ends)
    np.testing.assert_array_equal(truth["dies"], PATIENTS.died[PATIENTS.owner])
    surplus = np.bincount(PATIENTS.owner, risks[:, 0] - risks[:, 1])
    assert abs(surplus.sum()) < STRICT * np.sqrt((surplus**2).sum())


def test_risk_of_the_state_is_that_of_its_months(simulated):
    truth = pl.read_parquet(simulated.root / "truth.parquet")
    for visit in (0, 1000, len(truth) - 1):
        alive = np.eye(81)[PATIENTS.state[visit]][:, None]
        sex = PATIENTS.sex[PATIENTS.owner[visit]][None]
        for month in PATIENTS.month[visit] + 1 + np.arange(12):
            alive = WORLD.advance(alive, sex, month[None]) * (1 - WORLD.dies(sex, month[None]))
        assert truth["death_risk_state"][visit] == pytest.approx(1 - alive.sum(), rel=1e-9)


def test_the_data_set_can_be_prepared(simulated):
    config = simulated.config(codes_exclude=("MEDS_BIRTH", "MEDS_DEATH"), min_patients=1)
    prepared = prepare(config)
    report = prepared.report
    splits = events.make_splits(np.arange(1, 301))
    for split in events.SPLITS:
        members = np.flatnonzero((splits["split"] == split).to_numpy())
        assert report[f"patients/{split}"] == len(members) > 20
        assert report[f"tokens/{split}"] == select(PATIENTS, members).codes.sum() + len(members)
    assert report["visits"] == len(PATIENTS.owner)
    held_out = dataset.read(prepared.folder, "held_out")
    order = np.argsort(held_out.subject_ids)
    histories = oracle.read_histories(simulated.root, held_out.subject_ids[order])
    for place, patient in enumerate(order):
        part = slice(held_out.offsets[patient], held_out.offsets[patient + 1])
        visits, minutes = held_out.visits[part], held_out.minutes[part]
        _, first = np.unique(visits[visits >= 0], return_index=True)
        months = minutes[visits >= 0][first] / (30.4375 * 24 * 60)
        np.testing.assert_array_equal(months, histories.month[histories.owner == place])
