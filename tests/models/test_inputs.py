"""What a model is given is checked at the door, and the message names what was found."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.models import behrt
from behrt_jax.models.behrt import BEHRT
from behrt_jax.models.inputs import check_inputs, count_patients
from tests import tiny
from tests.models.drawn import parameters

COLUMNS = ("ages", "visit_ids", "attention_mask", "positions", "time_deltas", "dates")


pytestmark = pytest.mark.usefixtures("strict_jax", "quick_compilation")


def arguments(**overrides):
    batch = tiny.packed_batch([[5, 3], [4]], 8)
    return {
        "codes": batch["codes"],
        "attention_mask": batch["patient_ids"],
        **{name: batch[name] for name in ("ages", "visit_ids", "positions", "time_deltas", "dates")},
        **overrides,
    }


@functools.cache
def model_and_parameters():
    model = BEHRT(tiny.config())
    return model, parameters(model)


def shape(**overrides):
    """Calls the model on values that it can read, and computes nothing from them."""
    model, params = model_and_parameters()
    given = arguments(**overrides)
    return jax.eval_shape(lambda params: model.apply(params, **given), params).shape


def refused(message, **overrides):
    """The model refuses, on the host and while tracing."""
    given = arguments(**overrides)
    model, params = model_and_parameters()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        model.apply(params, **given)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        jax.eval_shape(model.apply, params, **given)


def test_good_inputs_pass():
    for dtype in (np.int32, np.int64, np.uint8, np.int16):
        assert shape(codes=arguments()["codes"].astype(dtype)) == (2, 8, 16)


@pytest.mark.parametrize("wrong", [(8,), (1, 2, 8), ()])
def test_codes_are_rows(wrong):
    refused(
        f"codes: found shape {wrong}; expected (rows, length), such as codes[None] for one",
        codes=np.zeros(wrong, np.int32),
    )


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("wrong", [(2, 7), (1, 8), (8,), (2, 8, 1), (2, 1)])
def test_each_column_has_the_shape_of_codes(name, wrong):
    values = np.ones(wrong, arguments()[name].dtype)
    refused(f"{name}: found shape {wrong}; expected that of codes, (2, 8)", **{name: values})


@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_codes_are_integers(dtype):
    refused(f"codes: found dtype {np.dtype(dtype)}; expected integers", codes=np.ones((2, 8), dtype))


@pytest.mark.parametrize(("low", "high"), [(0, tiny.VOCAB_SIZE), (-1, 5), (-7, 99)])
@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_ids_out_of_range_are_found_on_the_host(low, high, array):
    codes = np.full((2, 8), 5)
    codes[0, 3], codes[1, 7] = low, high
    message = f"codes: found ids from {low} to {high}; expected 0 to 29, as model.vocab_size=30; was another vocabulary"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        shape(codes=array(codes))


def test_the_ends_of_the_vocabulary_are_in_range():
    codes = np.zeros((2, 8), np.int32)
    codes[0, 0] = tiny.VOCAB_SIZE - 1
    assert shape(codes=codes) == (2, 8, 16)


@pytest.mark.slow
def test_values_are_not_read_while_tracing():
    model, params = model_and_parameters()
    wrong = arguments(codes=np.full((2, 8), 99, np.int32))
    assert jax.eval_shape(model.apply, params, **wrong).shape == (2, 8, 16)


def test_no_rows_are_no_error():
    assert shape(**{name: values[:0] for name, values in arguments().items()}) == (0, 8, 16)


def test_rows_longer_than_the_learned_table_need_positions():
    long = {name: np.zeros((1, 13), values.dtype) for name, values in arguments().items()}
    message = (
        "codes: found rows of length 13; expected at most model.max_positions=12; cut the rows, raise max_positions"
    )
    refused(message, **long | {"positions": None})
    assert shape(**long) == (1, 13, 16)
    twelve = {name: values[:, :12] for name, values in long.items()}
    assert shape(**twelve | {"positions": None}) == (1, 12, 16)


@pytest.mark.parametrize("encoding", ["none", "sinusoidal"])
def test_rows_of_any_length_do_without_a_learned_table(encoding):
    check_inputs(tiny.config(position_encoding=encoding), np.zeros((1, 1000), int), None)


def test_patients_are_one_a_row_unless_said_otherwise():
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    assert count_patients(mask, None) == 1
    assert count_patients(mask, 1) == 1
    assert count_patients(3 * mask, 3) == 3
    assert count_patients(mask, 7) == 7
    assert count_patients(mask[:0], None) == 1


@pytest.mark.parametrize("wrong", [0, -2])
def test_num_patients_is_at_least_one(wrong):
    with pytest.raises(ValueError, match=f"^num_patients: found {wrong}; expected 1 or more$"):
        count_patients(np.ones((1, 2), int), wrong)


@pytest.mark.parametrize(("num_patients", "highest"), [(None, 2), (1, 2), (2, 3)])
def test_more_patients_than_there_is_room_for(num_patients, highest):
    message = (
        f"attention_mask: found patients up to {highest} in a row, but num_patients={num_patients}; "
        f"expected num_patients={highest} or more for packed rows"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        count_patients(jnp.array([[1, highest, 0]]), num_patients)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        count_patients(np.array([[1, highest, 0]]), num_patients)


def test_patients_are_not_counted_while_tracing():
    assert jax.jit(lambda mask: count_patients(mask, 2) * mask)(np.array([[5]])) == 10


@pytest.mark.parametrize("wrong", [(8,), (2, 7)])
def test_a_mask_of_another_shape_is_named_by_pooling_too(wrong):
    model, params = model_and_parameters()
    message = rf"^attention_mask: found shape {re.escape(str(wrong))}; expected that of codes, \(2, 8\)"
    with pytest.raises(ValueError, match=message):
        given = arguments(attention_mask=np.ones(wrong, np.int32))
        model.apply(params, **given, method="get_patient_embedding", num_patients=3)


def test_encode_compiles_a_shape_once_and_checks_the_values_of_each_call():
    (model, params), given = model_and_parameters(), arguments()
    expected = model.apply(params, **given)
    np.testing.assert_allclose(behrt.encode(model, params, **given), expected, atol=1e-6)
    number = behrt._encode._cache_size()
    behrt.encode(model, params, **arguments(codes=np.flip(given["codes"], axis=1)))
    assert behrt._encode._cache_size() == number
    with pytest.raises(ValueError, match=rf"^codes: found ids from 0 to {tiny.VOCAB_SIZE}; expected 0 to"):
        behrt.encode(model, params, **arguments(codes=np.where(given["codes"] > 5, tiny.VOCAB_SIZE, 0)))
