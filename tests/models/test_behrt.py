"""The model as a whole: patients who share a row never see each other, and the head is the code table."""

import functools

import jax
import numpy as np
import pytest

from behrt_jax import BEHRTForMLM
from tests import tiny
from tests.models import reference, variants

pytestmark = pytest.mark.usefixtures("strict_jax")


def config_of(visit_bias: bool = True):
    return tiny.config(visit_bias=visit_bias, num_layers=2, rotary="ages" if visit_bias else "positions")


@functools.cache
def model_of(visit_bias: bool):
    model = BEHRTForMLM(config_of(visit_bias))
    weights = variants.drawn(model.config, ("codes",))
    params = {"params": {"behrt": weights["behrt"], "head": weights["codes"]}}

    @jax.jit
    def run(params, columns, named):
        return model.apply(params, *columns, **named, method="encode"), model.apply(params, *columns, **named)

    def run_batch(batch, params):
        return [np.asarray(part) for part in run(params, tiny.columns(batch), tiny.named(batch))]

    return params, lambda batch, params=params: run_batch(batch, params)


def changed(batch, places, rng):
    """Returns the batch with everything but `patient_ids` drawn anew at some places, NaN ages among it."""
    batch = {name: values.copy() for name, values in batch.items()}
    count = int(places.sum())
    batch["codes"][places] = rng.integers(0, tiny.VOCAB_SIZE, count)
    batch["ages"][places] = rng.choice([np.nan, np.inf, -1.0, 3e38, 20.0, 71.0], count)
    batch["visit_ids"][places] = rng.integers(0, 2**30, count)
    batch["positions"][places] = rng.integers(0, 2**30, count)
    batch["time_deltas"][places] = rng.choice([np.inf, -1.0, 3e38, 0.0, 71.0], count)
    batch["dates"][places] = rng.choice([np.nan, -60.0, 0.0, 24.9], count)
    return batch


@pytest.mark.parametrize("visit_bias", [True, False])
@pytest.mark.parametrize("patient", [1, 2, 3])
def test_patients_never_see_row_mates_or_padding(visit_bias, patient):
    _, run = model_of(visit_bias)
    batch = tiny.packed_batch([[5, 4, 3], [7, 3, 4]], 16)
    own = batch["patient_ids"] == patient
    before = run(batch)
    for seed in range(3):
        after = run(changed(batch, ~own, np.random.default_rng(seed)))
        for old, new in zip(before, after, strict=True):
            assert np.array_equal(old[own], new[own])
            assert np.isfinite(new).all()
            assert not np.array_equal(old[~own], new[~own])


COLUMNS = ("codes", "ages", "visit_ids", "positions", "time_deltas")


@pytest.mark.parametrize(
    ("visit_bias", "column"), [*((bias, column) for bias in (True, False) for column in COLUMNS), (True, "dates")]
)
def test_every_token_sees_every_token_of_its_own_patient(visit_bias, column):
    _, run = model_of(visit_bias)
    batch = tiny.packed_batch([[5, 4, 3], []], 16)
    if column == "dates":  # attention reads them where ages are unknown
        batch["ages"][0, 5:9] = np.nan
    before, _ = run(batch)
    real = batch["patient_ids"] > 0
    for place in (5, 8):  # the first and the last token of the second patient
        other = {name: values.copy() for name, values in batch.items()}
        new = {"codes": 17, "ages": 97, "visit_ids": 5, "positions": 11, "time_deltas": 0.0, "dates": 3.5}
        other[column][0, place] = new[column]
        moved = (run(other)[0] != before).any(axis=-1)
        np.testing.assert_array_equal(moved[real], batch["patient_ids"][real] == 2)


@pytest.mark.parametrize("visit_bias", [True, False])
def test_place_in_the_row_and_row_length_do_not_matter(visit_bias):
    _, run = model_of(visit_bias)
    packed = tiny.packed_batch([[5, 4, 3], []], 16)
    start, size = 5, 4
    hidden, logits = (part[0, start : start + size] for part in run(packed))
    for length, place in ((16, 0), (16, 12), (23, 9)):
        alone = {name: np.zeros((2, length), packed[name].dtype) for name in packed if name != "patient_index"}
        for name, values in alone.items():
            values[0, place : place + size] = packed[name][0, start : start + size]
        alone["patient_ids"] = (alone["patient_ids"] > 0).astype(np.int32)  # now a plain 0/1 attention mask
        for expected, found in zip((hidden, logits), run(alone), strict=True):
            np.testing.assert_allclose(found[0, place : place + size], expected, atol=1e-5)


def test_positions_default_to_the_place_in_the_row():
    params, run = model_of(True)
    batch = tiny.packed_batch([[12], [12]], 12)
    named = tiny.named(batch)
    del named["positions"]
    found = jax.jit(BEHRTForMLM(config_of()).apply)(params, *tiny.columns(batch), **named)
    np.testing.assert_allclose(found, run(batch)[1], atol=1e-5)


def test_the_head_is_tied_to_the_code_table():
    """A row of the table moves its own code's logit by the query times the change, and no other code's."""
    params, run = model_of(True)
    batch = tiny.packed_batch([[5, 4], []], 16)
    code = next(code for code in range(5, tiny.VOCAB_SIZE) if code not in batch["codes"])
    change = np.linspace(-1, 1, 8).astype(np.float32)
    moved = jax.tree.map(lambda leaf: leaf, params)
    table = moved["params"]["behrt"]["embedding"]["codes"]["embedding"]
    others = np.arange(tiny.VOCAB_SIZE) != code
    moved["params"]["behrt"]["embedding"]["codes"]["embedding"] = np.where(others[:, None], table, table + change)
    real = batch["patient_ids"] > 0
    (hidden, before), (_, after) = (run(batch, each) for each in (params, moved))
    np.testing.assert_array_equal(before[..., others], after[..., others])
    doubles = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    transformed = reference.gelu(reference.dense(hidden, doubles["head"]["transform"]))
    query = reference.layer_norm(transformed, doubles["head"]["norm"])
    np.testing.assert_allclose((after - before)[real, code], (query @ change)[real], atol=2e-5)
    assert not any(leaf.shape == (tiny.VOCAB_SIZE, 8) for leaf in jax.tree.leaves(params["params"]["head"]))


def test_scores_at_masked_positions_are_those_of_the_whole_row():
    params, run = model_of(True)
    apply = jax.jit(BEHRTForMLM(config_of()).apply)
    batch = tiny.packed_batch([[5, 4], [9]], 16)
    places = np.array([[8, 0, 3], [1, 1, 7]])
    found = apply(params, *tiny.columns(batch), **tiny.named(batch), masked_positions=places)
    np.testing.assert_allclose(found, run(batch)[1][np.arange(2)[:, None], places], atol=1e-5)
