"""Measurements of simulated patients: their values, and what the oracle makes of them."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from behrt_jax.data import events
from behrt_jax.simulation import oracle
from behrt_jax.simulation import world as worlds
from behrt_jax.simulation.labels import make_labels, measure_oracle
from behrt_jax.simulation.simulator import select, simulate, write

WORLD = worlds.make_world(0, num_diseases=2, num_measurements=3)
PATIENTS = simulate(WORLD, 1200, 0)
BLIND = dataclasses.replace(PATIENTS, values=None)
STAGES = worlds.stages_of(2)


def test_worlds_without_measurements_are_as_they_were():
    """Also their files: those of before lack the arrays of measurements."""
    plain = worlds.make_world(0, num_diseases=2)
    assert plain.codes == WORLD.codes[:-3] and not plain.codes[plain.measured]
    for name in ("moves", "death", "visit"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(WORLD, name))
    coded = STAGES[:, 0] == 0  # without the disease that seldom has a code, codes come as before
    np.testing.assert_array_equal(plain.emission[coded], WORLD.emission[coded, :-3])
    assert simulate(plain, 5, 0).values.shape[1] == 0


def test_a_world_from_a_file_without_measurements_loads(tmp_path):
    plain = worlds.make_world(0, num_diseases=2)
    old = {name: value for name, value in vars(plain).items() if not name.startswith("value_")}
    np.savez_compressed(tmp_path / worlds.WORLD_FILE, **old)
    found = worlds.load_world(tmp_path)
    patients = simulate(found, 20, 0)
    np.testing.assert_array_equal(oracle.filter_states(found, patients), oracle.filter_states(plain, patients))


def test_values_are_of_the_stage_and_measured_whatever_it_is():
    measured = PATIENTS.codes[:, WORLD.measured]
    np.testing.assert_array_equal(measured, ~np.isnan(PATIENTS.values))
    np.testing.assert_array_equal(PATIENTS.values, PATIENTS.values.astype(np.float32))
    for place, deviation in enumerate(WORLD.value_deviations):
        for state in range(len(STAGES)):
            values = PATIENTS.values[(PATIENTS.state == state) & measured[:, place], place]
            if len(values) > 30:
                error = 4 * deviation / np.sqrt(len(values))
                assert abs(values.mean() - WORLD.value_means[state, place]) < error
                assert values.std() == pytest.approx(deviation, abs=error)
    assert np.ptp(WORLD.emission[:, WORLD.measured], axis=0).max() == 0
    spread = np.ptp(WORLD.value_means, axis=0) / WORLD.value_deviations
    assert spread[:2].min() > 1 and spread[2] == 0


def test_values_that_tell_nothing_change_nothing():
    same = dataclasses.replace(WORLD, value_means=np.broadcast_to(WORLD.value_means[:1], WORLD.value_means.shape))
    with_values, without = (oracle.filter_states(same, own) for own in (PATIENTS, BLIND))
    np.testing.assert_allclose(with_values, without, atol=1e-12)
    assert np.abs(oracle.filter_states(WORLD, PATIENTS) - without).max() > 0.5


def test_without_measurements_the_oracle_is_that_of_a_world_that_has_none():
    world, histories = worlds.keep_measurements(WORLD, PATIENTS, ())
    assert not world.codes[world.measured] and len(world.codes) == histories.codes.shape[1]
    np.testing.assert_allclose(oracle.filter_states(world, histories), oracle.filter_states(WORLD, BLIND), atol=1e-12)


def test_one_measurement_tells_what_its_values_alone_tell():
    names = WORLD.codes[WORLD.measured]
    world, histories = worlds.keep_measurements(WORLD, PATIENTS, {names[1], "CONDITION//SIM//common-00"})
    assert world.codes[world.measured] == names[1:2] and world.codes[: world.measured.start] == WORLD.codes[:-3]
    values = np.where(np.arange(3) == 1, PATIENTS.values, np.nan)
    expected = oracle.filter_states(WORLD, dataclasses.replace(PATIENTS, values=values))
    np.testing.assert_allclose(oracle.filter_states(world, histories), expected, atol=1e-12)
    assert np.abs(expected - oracle.filter_states(WORLD, BLIND)).max() > 0.1


def test_values_tell_of_the_disease_that_seldom_has_a_code():
    has_disease = STAGES[:, 0] > 0
    truth = has_disease[PATIENTS.state]
    with_values, without = (oracle.states_before(WORLD, own) @ has_disease for own in (PATIENTS, BLIND))
    assert roc_auc_score(truth, with_values) > roc_auc_score(truth, without) + 0.015
    for probabilities in (with_values, without):  # each is calibrated given what it reads
        for group in np.unique(bins := np.digitize(probabilities, (0.01, 0.03, 0.1, 0.3, 0.7))):
            by_patient = np.bincount(PATIENTS.owner, (truth - probabilities) * (bins == group))
            assert abs(by_patient.sum()) < 4 * np.sqrt((by_patient**2).sum())


def test_a_hidden_measurement_hides_its_value():
    some = select(PATIENTS, np.arange(60))
    hidden = np.zeros_like(some.codes)
    hidden[:, WORLD.measured] = some.codes[:, WORLD.measured]
    other = dataclasses.replace(some, values=some.values + 40.0)
    found, shifted = (oracle.masked_probabilities(WORLD, own, hidden) for own in (some, other))
    np.testing.assert_array_equal(found, shifted)


def test_files_hold_the_values_and_labels_have_both_oracles(tmp_path):
    folder = tmp_path / "simulated"
    folder.mkdir()
    write(folder, WORLD, PATIENTS, seed=0)
    found = oracle.read_histories(folder, range(1, len(PATIENTS.sex) + 1))
    np.testing.assert_array_equal(found.values, PATIENTS.values)
    table = pl.concat([pl.read_parquet(file) for file in events.find_shards(folder)])
    has_value = table["numeric_value"].is_not_null()
    assert (table["code"].str.starts_with("LAB//") == has_value).all() and has_value.any()
    made, visits = make_labels(str(folder), 0)
    text = measure_oracle(made["diabetes"], "diabetes", visits, str(folder))
    with_values, without = (float(part) for part in text.replace(" without values)", "").split("AUROC ")[1].split(" ("))
    assert with_values > without
    assert "without values" in measure_oracle(made["death"], "death", visits, str(folder))
