"""Values modulate the embedding of their own code: nothing at first, nothing without a value, never a row-mate."""

import jax
import numpy as np
import pytest

from behrt_jax.models.behrt import BEHRT, count_parameters, encode
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.embeddings import VALUE_KNOTS, ValueModulation
from behrt_jax.models.heads import QUANTILES, ValueHead
from tests import tiny
from tests.models.drawn import apply, parameters

pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")

BATCH = tiny.packed_batch([[6, 5], [9]], 12)
HAS_VALUE = ~np.isnan(BATCH["values"])


def test_a_model_with_values_begins_as_the_one_without():
    plain, model = (BEHRT(tiny.config(value_encoding=values)) for values in ("none", "film"))
    key, columns = jax.random.key(0), (tiny.columns(BATCH), tiny.named(BATCH))
    params = {each: jax.jit(each.init)(key, *columns[0], **columns[1]) for each in (plain, model)}
    rest = {**params[model]["params"], "embedding": dict(params[model]["params"]["embedding"])}
    modulation = rest["embedding"].pop("values")
    jax.tree.map(np.testing.assert_array_equal, {"params": rest}, params[plain])
    assert any(leaf.any() for leaf in jax.tree.leaves(modulation))
    np.testing.assert_array_equal(apply(model, BATCH, params[model]), apply(plain, BATCH, params[plain]))


def test_a_value_changes_its_code_and_a_token_without_one_is_as_it_was():
    model, plain = BEHRT(tiny.config(value_encoding="film")), BEHRT(tiny.config())
    params = parameters(model)
    rest = {**params["params"], "embedding": dict(params["params"]["embedding"])}
    del rest["embedding"]["values"]
    unknown = BATCH | {"values": np.full_like(BATCH["values"], np.nan)}
    np.testing.assert_array_equal(apply(model, unknown, params), apply(plain, unknown, {"params": rest}))
    for row, place in np.argwhere(HAS_VALUE):
        values = BATCH["values"].copy()
        values[row, place] += 0.25
        moved = (apply(model, BATCH | {"values": values}) != apply(model, BATCH)).any(axis=-1)
        expected = (BATCH["patient_ids"] == BATCH["patient_ids"][row, place]) & (np.arange(2) == row)[:, None]
        np.testing.assert_array_equal(moved[BATCH["patient_ids"] > 0], expected[BATCH["patient_ids"] > 0])


def test_the_modulation_is_one_of_the_value_and_the_code_and_values_beyond_the_knots_are_clipped():
    module, rng = ValueModulation(), np.random.default_rng(0)
    embedded = np.repeat(rng.standard_normal((1, 1, 8)), 6, axis=1).astype(np.float32)
    values = np.float32([[-np.inf, VALUE_KNOTS[0], -0.3, 0.7, VALUE_KNOTS[-1], 1e9]])
    params = tiny.scattered(module.init(jax.random.key(0), embedded, values))
    found = np.asarray(module.apply(params, embedded, values))[0]
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[[0, 4]], found[[1, 5]])
    assert len({row.tobytes() for row in found}) == 4
    shift = np.asarray(module.apply(params, 0 * embedded, values))[0]  # the rest is a factor of the embedding
    double = np.asarray(module.apply(params, 2 * embedded, values))[0]
    np.testing.assert_allclose(double - shift, 2 * (found - shift), rtol=1e-4, atol=1e-5)


def test_encode_reads_values_and_a_model_that_needs_them_says_so():
    model = BEHRT(tiny.config(value_encoding="film"))
    found = encode(model, parameters(model), *tiny.columns(BATCH), **tiny.named(BATCH))
    real = BATCH["patient_ids"] > 0
    np.testing.assert_allclose(np.asarray(found)[real], apply(model, BATCH)[real], atol=1e-5)
    without = {name: column for name, column in tiny.named(BATCH).items() if name != "values"}
    with pytest.raises(ValueError, match=r"^values: found None; expected \(B, L\) .*data.value_encoding='continuous'"):
        model.apply(parameters(model), *tiny.columns(BATCH), **without)
    with pytest.raises(ValueError, match=r"^values: found shape \(2, 11\); expected that of codes, \(2, 12\)"):
        model.apply(parameters(model), *tiny.columns(BATCH), **without, values=BATCH["values"][:, 1:])
    with pytest.raises(ValueError, match="model.value_encoding: found bins; expected one of none, film"):
        BEHRTConfig.small(9, value_encoding="bins")


def test_the_cost_in_parameters_is_that_of_the_modulation():
    def count(values):
        model = BEHRT(BEHRTConfig.small(1000, value_encoding=values))
        columns, named = tiny.columns(BATCH), tiny.named(BATCH)
        return count_parameters(jax.eval_shape(model.init, jax.random.key(0), *columns, **named))

    knots, width = len(VALUE_KNOTS) - 1, 64
    assert count("film") - count("none") == (knots + 1) * width + (width + 1) * 2 * width


def test_quantiles_begin_as_those_of_a_normal_distribution_and_never_cross():
    head, rng = ValueHead(tiny.config()), np.random.default_rng(0)
    states, codes = (rng.standard_normal((3, 5, width)).astype(np.float32) for width in (16, 8))
    params = head.init(jax.random.key(0), states, codes)
    still = jax.tree.map(np.asarray, params)
    still["params"]["output"]["kernel"] = 0 * still["params"]["output"]["kernel"]
    found = np.asarray(head.apply(still, states, codes))
    sample = np.quantile(rng.standard_normal(1_000_000), QUANTILES)
    np.testing.assert_allclose(found, np.broadcast_to(sample, found.shape), atol=0.02)
    wild = np.asarray(head.apply(tiny.scattered(params, scale=3.0), states, codes))
    assert wild.shape == (3, 5, len(QUANTILES)) and (np.diff(wild, axis=-1) >= 0).all()
