"""Embeddings of patients, whoever shares their rows and batches; and the order in which batches are computed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.data import batches
from behrt_jax.embeddings.patients import embed
from behrt_jax.models import inference
from behrt_jax.models.behrt import encode
from behrt_jax.models.pretraining import BEHRTForMLM
from tests import tiny
from tests.data.handmade import only, random_patients

PATIENTS = random_patients(0, 40, vocabulary=tiny.VOCAB_SIZE)
ROW_LENGTH = 32


@pytest.fixture(scope="module")
def model():
    model = BEHRTForMLM(tiny.config(num_layers=2))
    batch = tiny.packed_batch([[8]], 8)
    return model, tiny.scattered(model.init(jax.random.key(0), *tiny.columns(batch), **tiny.named(batch)))


@pytest.fixture
def data(bundled_config):
    return dataclasses.replace(bundled_config, row_length=ROW_LENGTH)


def test_an_embedding_does_not_depend_on_row_mates_or_batches(model, data):
    poolings, half = ("mean", "cls", "recent"), np.arange(40) % 2 == 1
    together = embed(data, *model, PATIENTS, 3, poolings=poolings)
    larger = embed(data, *model, PATIENTS, 64, poolings=poolings)
    others = embed(data, *model, only(PATIENTS, half), 3, poolings=poolings)
    alone = embed(data, *model, only(PATIENTS, np.arange(40) == 17), 3, poolings=poolings)
    for name, values in together.items():
        assert values.std(axis=0).min() > 1e-3
        np.testing.assert_allclose(larger[name], values, atol=1e-5)
        np.testing.assert_allclose(others[name], values[half], atol=1e-5)
        np.testing.assert_allclose(alone[name][0], values[17], atol=1e-5)


def test_embeddings_are_those_of_patients_one_a_row(model, data):
    rows = batches.one_a_row(PATIENTS, ROW_LENGTH)
    states = np.asarray(encode(*model, *tiny.columns(rows), **tiny.named(rows), time_ranks=rows["time_ranks"]))
    found = embed(data, *model, PATIENTS, 4, poolings=("mean", "cls", "last"))
    is_token = rows["patient_ids"] != 0
    last = is_token.sum(axis=1) - 1
    np.testing.assert_allclose(found["cls"], states[:, 0], atol=1e-5)
    np.testing.assert_allclose(found["last"], states[np.arange(40), last], atol=1e-5)
    means = (states * is_token[..., None]).sum(axis=1) / is_token.sum(axis=1)[:, None]
    np.testing.assert_allclose(found["mean"], means, atol=1e-5)


def test_batches_are_dispatched_before_results_are_read():
    taken = []

    def dispatch(number: int):
        taken.append(number)
        return f"batch {number}", {"squares": jnp.arange(3) * number}

    most_ahead = []
    for number, (host, results) in enumerate(inference.fetch(map(dispatch, range(6)))):
        assert host == f"batch {number}" and isinstance(results["squares"], np.ndarray)
        np.testing.assert_array_equal(results["squares"], np.arange(3) * number)
        most_ahead.append(len(taken) - number - 1)
    assert most_ahead == [inference.AHEAD] * 4 + [1, 0]
    assert list(inference.fetch(map(dispatch, range(0)))) == []


def test_inference_has_few_rows_a_batch_on_a_cpu_alone(monkeypatch):
    assert (inference.limit_rows(2), inference.limit_rows(64)) == (2, inference.CPU_ROWS)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert (inference.limit_rows(2), inference.limit_rows(64)) == (2, 64)
