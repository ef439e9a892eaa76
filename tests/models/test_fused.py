"""Functions with gradients of their own: values and gradients are those of the plain formulas, which JAX derives."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from behrt_jax.models import fused
from behrt_jax.models.encoder import make_rotary
from tests.models.test_gradients import enable_x64

pytestmark = pytest.mark.usefixtures("strict_jax")
B, Q, L, H, D = 2, 3, 7, 2, 8
N, E, V = 23, 6, 40


def drawn(*shapes, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def assert_same(fast, plain, *arguments, **tolerances):
    """Holds the value, and the gradient by each argument in a random direction, to those of the plain formula."""
    (along,) = drawn(jax.eval_shape(plain, *arguments).shape, seed=1)

    def of(function):
        def value(*arguments):
            output = function(*arguments)
            return (output * along).sum(), output

        places = tuple(range(len(arguments)))
        return jax.jit(jax.grad(value, argnums=places, has_aux=True))(*arguments)

    (slopes, found), (expected_slopes, expected) = of(fast), of(plain)
    np.testing.assert_allclose(found, expected, **tolerances)
    for slope, expected_slope in zip(slopes, expected_slopes, strict=True):
        assert np.abs(expected_slope).max() > 1e-3
        np.testing.assert_allclose(slope, expected_slope, **tolerances)


@pytest.fixture(autouse=True)
def float64():
    with enable_x64():
        yield


EXACT = {"rtol": 1e-9, "atol": 1e-10}


@pytest.mark.parametrize(("inputs", "outputs"), [(5, 9), (9, 5)])
def test_a_dense_layer(inputs, outputs):
    def plain(x, kernel, bias):
        return jnp.einsum("bli,io->blo", x, kernel) + bias[None, None]

    assert_same(fused.dense, plain, *drawn((B, L, inputs), (inputs, outputs), (outputs,)), **EXACT)


def test_normalisation():
    def plain(x):
        return nn.LayerNorm(use_bias=False, use_scale=False).apply({}, x)

    assert_same(fused.normalize, plain, *drawn((B, L, D)), **EXACT)
    constant = fused.normalize(jnp.full((1, 1, D), 3.0))
    np.testing.assert_array_equal(constant, np.zeros((1, 1, D)))


def test_scale_and_shift_fold_into_the_dense_layer():
    x, scale, shift, kernel, bias = drawn((B, L, D), (D,), (D,), (D, 5), (5,))

    def folded(scale, shift, kernel, bias):
        return fused.dense(x, *fused.Affine(scale, shift).fold(kernel, bias))

    def plain(scale, shift, kernel, bias):
        return jnp.einsum("bli,io->blo", fused.Affine(scale, shift).apply(x), kernel) + bias[None, None]

    assert_same(folded, plain, scale, shift, kernel, bias, **EXACT)


def test_gelu():
    assert_same(fused.gelu, nn.gelu, 3 * drawn((B, L, D))[0], **EXACT)


def plain_attention(queries, keys_values, bias, query_rotary, key_rotary):
    """One row and head at a time, with `jax.nn.softmax`."""
    keys, values = jnp.split(keys_values, 2, axis=-1)
    rows = []
    for row in range(B):
        heads = []
        for head in range(H):
            part = slice(head * D // H, (head + 1) * D // H)
            query, key = queries[row, :, part], keys[row, :, part]
            if query_rotary is not None:
                query, key = rotated(query, query_rotary, row), rotated(key, key_rotary, row)
            scores = jnp.matmul(query, key.T) / np.sqrt(D / H) + bias[row, head % bias.shape[1]]
            heads.append(jnp.matmul(jax.nn.softmax(scores, axis=-1), values[row, :, part]))
        rows.append(jnp.concatenate(heads, axis=-1))
    return jnp.stack(rows)


def rotated(x, rotary, row):
    """Complex numbers, turned by their angle."""
    half = x.shape[-1] // 2
    turn = rotary.cosines[row, 0, :, :half] + 1j * rotary.sines[row, 0, :, half:]
    product = (x[:, :half] + 1j * x[:, half:]) * turn
    return jnp.concatenate([product.real, product.imag], axis=-1)


@pytest.mark.parametrize("bias_heads", [1, H])
@pytest.mark.parametrize("rotary", [False, True])
def test_attention(rotary, bias_heads):
    queries, keys_values, bias = drawn((B, Q, D), (B, L, 2 * D), (B, bias_heads, Q, L))
    bias[0, :, 1] = -1e30  # a token that sees nothing, as padding does
    bias[1, :, :, 4:] = -1e30
    turns = [make_rotary(places, D // H) if rotary else None for places in drawn((B, Q), (B, L))]

    def fast(queries, keys_values):
        return fused.attend(queries, keys_values, bias, *turns, H)

    def plain(queries, keys_values):
        return plain_attention(queries, keys_values, bias, *turns)

    assert_same(fast, plain, queries, keys_values, **EXACT)
    weights = np.asarray(fused.attention_weights(queries, keys_values, bias, *turns, H))
    np.testing.assert_allclose(weights.sum(axis=-1), 1.0)
    assert not weights[1, :, :, 4:].any() and weights.shape == (B, H, Q, L)
    values = np.split(keys_values, 2, axis=-1)[1].reshape(B, L, H, D // H)
    mean = np.einsum("bhqk,bkhd->bqhd", weights, values).reshape(B, Q, D)
    np.testing.assert_allclose(mean, fast(queries, keys_values), **EXACT)


def code_arguments():
    queries, table, bias = drawn((N, E), (V, E), (V,))
    rng = np.random.default_rng(2)
    labels, weights = rng.integers(0, V, N), (rng.random(N) < 0.6).astype(float)
    assert 8 < weights.sum() < 20
    return queries, table, bias, labels, weights


def plain_losses(queries, table, bias, labels, weights):
    log_shares = jax.nn.log_softmax(jnp.matmul(queries, table.T) + bias[None], axis=-1)
    return -(jnp.take_along_axis(log_shares, labels[:, None], axis=1)[:, 0] * weights).sum()


@pytest.mark.parametrize("block", [4, 8, N])
def test_losses_of_codes_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(fused, "block_size", lambda num_positions, vocab_size: block)
    *parameters, labels, weights = code_arguments()

    def fast(*parameters):
        return fused.code_losses(*parameters, labels, weights)["loss"]

    assert_same(fast, lambda *parameters: plain_losses(*parameters, labels, weights), *parameters, **EXACT)
    sums = fused.code_losses(*parameters, labels, weights)
    logits = parameters[0] @ parameters[1].T + parameters[2]
    places = (logits > np.take_along_axis(logits, labels[:, None], axis=1)).sum(axis=1)
    for name, cutoff in fused.CUTOFFS.items():
        assert 0 < sums[name] == ((places < cutoff) * weights).sum(), name


@pytest.mark.parametrize("block", [4, 8, N])
def test_the_loss_of_absent_codes_in_blocks_of_any_size(block, monkeypatch):
    monkeypatch.setattr(fused, "block_size", lambda num_positions, vocab_size: block)
    *parameters, labels, weights = code_arguments()
    is_target, weights = np.arange(V) % 3 > 0, 2.5 * weights

    def fast(*parameters):
        return fused.absence_loss(*parameters, is_target, weights)

    def plain(queries, table, bias):
        losses = jnp.logaddexp(0.0, jnp.matmul(queries, table.T) + bias[None])
        return (jnp.where(is_target[None], losses, 0.0).sum(axis=1) * weights).sum()

    assert_same(fast, plain, *parameters, **EXACT)
    queries, *rest = parameters
    queries[weights == 0] = 1e6  # what does not count may be anything
    assert fast(queries, *rest) == fast(*parameters)


def test_positions_that_do_not_count_may_hold_anything(monkeypatch):
    monkeypatch.setattr(fused, "block_size", lambda num_positions, vocab_size: 4)
    queries, *parameters, labels, weights = code_arguments()
    loss = jax.value_and_grad(lambda *parameters: fused.code_losses(*parameters, labels, weights)["loss"])
    expected, _ = loss(queries, *parameters)
    queries[weights == 0] = 1e6
    found, slopes = loss(queries, *parameters)
    assert found == expected and not slopes[weights == 0].any()
    nothing = fused.code_losses(queries, *parameters, labels, 0 * weights)
    assert not any(nothing.values())


def test_ties_are_errors():
    queries, labels, weights = np.zeros((3, E)), np.array([0, 7, 39]), np.ones(3)
    sums = fused.code_losses(queries, np.ones((V, E)), np.zeros(V), labels, weights)
    assert {name: float(sums[name]) for name in fused.CUTOFFS} == dict.fromkeys(fused.CUTOFFS, 0.0)
    assert sums["loss"] == pytest.approx(3 * np.log(V))


def test_blocks_are_small_at_large_vocabularies():
    if jax.default_backend() == "cpu":
        assert fused.block_size(10_000, 1_000) == 256
        assert fused.block_size(10_000, 20_000) == 128
    assert fused.block_size(50, 1_000) == 50
