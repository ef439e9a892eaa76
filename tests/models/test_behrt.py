"""The model as a whole: against plain numpy, and patients who share a row never see each other."""

import functools

import jax
import numpy as np
import pytest

from behrt_jax import BEHRTForMLM
from behrt_jax.models.encoder import visit_slopes
from tests import tiny


@pytest.fixture(autouse=True)
def _strict():
    with tiny.strict_jax():
        yield


@functools.cache
def model_of(visit_bias: bool, num_layers: int = 2):
    model = BEHRTForMLM(tiny.config(visit_bias=visit_bias, num_layers=num_layers))
    ints, days = np.zeros((1, 2), np.int32), np.zeros((1, 2), np.float32)
    params = tiny.scattered(jax.jit(model.init)(jax.random.key(0), ints, days, ints, ints, ints, days))

    @jax.jit
    def run(params, *columns):
        return model.apply(params, *columns, method="encode"), model.apply(params, *columns)

    return params, lambda batch, params=params: [np.asarray(part) for part in run(params, *tiny.columns(batch))]


def changed(batch, places, rng):
    """Returns the batch with everything but `patient_ids` drawn anew at some places, NaN ages among it."""
    batch = {name: values.copy() for name, values in batch.items()}
    count = int(places.sum())
    batch["codes"][places] = rng.integers(0, tiny.VOCAB_SIZE, count)
    batch["ages"][places] = rng.choice([np.nan, np.inf, -1.0, 3e38, 20.0, 71.0], count)
    batch["visit_ids"][places] = rng.integers(0, 2**30, count)
    batch["positions"][places] = rng.integers(0, 2**30, count)
    batch["time_deltas"][places] = rng.choice([np.inf, -1.0, 3e38, 0.0, 71.0], count)
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


@pytest.mark.parametrize("visit_bias", [True, False])
@pytest.mark.parametrize("column", ["codes", "ages", "visit_ids", "positions", "time_deltas"])
def test_every_token_sees_every_token_of_its_own_patient(visit_bias, column):
    _, run = model_of(visit_bias)
    batch = tiny.packed_batch([[5, 4, 3], []], 16)
    before, _ = run(batch)
    real = batch["patient_ids"] > 0
    for place in (5, 8):  # the first and the last token of the second patient
        other = {name: values.copy() for name, values in batch.items()}
        new = {"codes": 17, "ages": 97, "visit_ids": 5, "positions": 11, "time_deltas": 0.0}
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
    model = BEHRTForMLM(tiny.config(num_layers=2))
    batch = tiny.packed_batch([[16], [16]], 16)
    codes, ages, visit_ids, mask, _, time_deltas = tiny.columns(batch)
    found = jax.jit(model.apply)(params, codes, ages, visit_ids, mask, time_deltas=time_deltas)
    np.testing.assert_allclose(found, run(batch)[1], atol=1e-5)


def test_a_row_of_padding_is_finite_and_so_is_its_gradient():
    model = BEHRTForMLM(tiny.config())
    batch = tiny.packed_batch([[4], []], 8)
    params = jax.jit(model.init)(jax.random.key(0), *tiny.columns(batch))

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params):
        logits = model.apply(params, *tiny.columns(batch))
        return logits[0].sum(), logits

    grads, logits = gradient(params)
    assert np.isfinite(logits).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


# The same forward pass in plain numpy, written from the papers and not from the modules.


def layer_norm(x, weights):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weights["scale"] + weights["bias"]


def dense(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def turned(x, positions):
    """Pairs of features as complex numbers, turned by an angle that grows with the position."""
    half = x.shape[-1] // 2
    angles = positions[..., None] * 100.0 ** (-np.arange(half) / half)
    product = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)
    return np.concatenate([product.real, product.imag], axis=-1)


def attention(x, weights, patient_ids, visit_ids, positions, slopes):
    """One query and head at a time, over the keys of its patient alone."""
    rows, length, width = x.shape
    query, key, value = np.split(dense(x, weights["qkv"]), 3, axis=-1)
    size = width // len(slopes)
    mixed = np.zeros_like(x)
    for row in range(rows):
        for place in range(length):
            mine = np.flatnonzero(patient_ids[row] == patient_ids[row, place])
            for head, slope in enumerate(slopes):
                part = slice(head * size, (head + 1) * size)
                asked = turned(query[row, place, part], positions[row, place])
                scores = turned(key[row, mine, part], positions[row, mine]) @ asked / np.sqrt(size)
                scores = scores - slope * abs(visit_ids[row, mine] - visit_ids[row, place])
                share = np.exp(scores - scores.max())
                mixed[row, place, part] = share / share.sum() @ value[row, mine, part]
    return dense(mixed, weights["output"])


def forward(params, config, batch):
    embedding, encoder = params["behrt"]["embedding"], params["behrt"]["encoder"]
    codes, ages, visit_ids, patient_ids, positions, time_deltas = tiny.columns(batch)
    age_bins = np.where(np.isnan(ages), 0, 1 + np.minimum(np.nan_to_num(ages) // 5, 20)).astype(int)
    x = embedding["codes"]["embedding"][codes]
    x = x + embedding["ages"]["table"]["embedding"][age_bins]
    x = x + embedding["visits"]["table"]["embedding"][np.minimum(visit_ids, config.max_visits - 1)]
    x = x + embedding["positions"]["table"]["embedding"][np.minimum(positions, config.max_positions - 1)]
    time_bins = np.minimum(np.floor(2 * np.log2(1 + time_deltas)), config.time_bins - 1).astype(int)
    x = x + embedding["times"]["table"]["embedding"][time_bins]
    x = dense(layer_norm(x, embedding["norm"]), embedding["projection"])
    slopes = visit_slopes(config.num_heads) if config.visit_bias else (0.0,) * config.num_heads
    for layer in range(config.num_layers):
        block = encoder[f"block_{layer}"]
        normed = layer_norm(x, block["attention_norm"])
        x = x + attention(normed, block["attention"], patient_ids, visit_ids, positions, slopes)
        inner = gelu(dense(layer_norm(x, block["feedforward_norm"]), block["feedforward"]["input"]))
        x = x + dense(inner, block["feedforward"]["output"])
    hidden = layer_norm(x, encoder["norm"])
    query = layer_norm(gelu(dense(hidden, params["head"]["transform"])), params["head"]["norm"])
    return hidden, query @ embedding["codes"]["embedding"].T + params["head"]["bias"]


@pytest.mark.parametrize("visit_bias", [True, False])
def test_hidden_states_and_logits_equal_those_of_plain_numpy(visit_bias):
    params, run = model_of(visit_bias)
    batch = tiny.packed_batch([[5, 4, 6], [16]], 16, seed=1)
    batch["ages"][0, 5:9] = np.nan
    doubles = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    real = batch["patient_ids"] > 0
    for expected, found in zip(
        forward(doubles, tiny.config(visit_bias=visit_bias, num_layers=2), batch), run(batch), strict=True
    ):
        np.testing.assert_allclose(found[real], expected[real], atol=2e-5, rtol=1e-5)


def test_the_head_is_tied_to_the_code_table():
    """A row of the table moves its own code's logit by the query times the change, and no other code's."""
    params, run = model_of(True)
    batch = tiny.packed_batch([[5, 4], []], 16)
    code = next(code for code in range(5, tiny.VOCAB_SIZE) if code not in batch["codes"])
    change = np.linspace(-1, 1, 8).astype(np.float32)
    moved = jax.tree.map(lambda leaf: leaf, params)
    table = moved["params"]["behrt"]["embedding"]["codes"]["embedding"]
    moved["params"]["behrt"]["embedding"]["codes"]["embedding"] = table.at[code].add(change)
    real = batch["patient_ids"] > 0
    before, after = (run(batch, each)[1] for each in (params, moved))
    others = np.arange(tiny.VOCAB_SIZE) != code
    np.testing.assert_array_equal(before[..., others], after[..., others])
    doubles = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]
    hidden, _ = forward(doubles, tiny.config(num_layers=2), batch)
    query = layer_norm(gelu(dense(hidden, doubles["head"]["transform"])), doubles["head"]["norm"])
    np.testing.assert_allclose((after - before)[real, code], (query @ change)[real], atol=2e-5)
    assert not any(leaf.shape == (tiny.VOCAB_SIZE, 8) for leaf in jax.tree.leaves(params["params"]["head"]))


def test_scores_at_masked_positions_are_those_of_the_whole_row():
    params, run = model_of(True)
    model = BEHRTForMLM(tiny.config(num_layers=2))
    batch = tiny.packed_batch([[5, 4], [9]], 16)
    places = np.array([[8, 0, 3], [1, 1, 7]])
    found = jax.jit(model.apply)(params, *tiny.columns(batch), masked_positions=places)
    np.testing.assert_allclose(found, run(batch)[1][np.arange(2)[:, None], places], atol=1e-5)
