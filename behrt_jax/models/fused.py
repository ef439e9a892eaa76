"""Functions of the encoder and of the masked-code loss with gradients of their own.

XLA's automatic gradients of these take up to three times as long on a CPU. `tests/models/reference.py` has the plain
formulas; tests hold values and gradients to them. Only reverse-mode differentiation is possible.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

EPSILON = 1e-6  # of layer normalisation
TANH_SCALE, TANH_CUBE = 0.7978845608028654, 0.044715  # of GELU (Hendrycks and Gimpel 2016); the first is sqrt(2 / pi)
# Positions that `code_losses` scores at a time on a CPU: products are fastest at multiples of 128, and small blocks
# stay in the cache.
BLOCK, SMALL_VOCABULARY = 128, 8_000


class Affine(NamedTuple):
    """Scale and shift of a layer normalisation, (D,) each, which the dense layer after it takes in."""

    scale: jax.Array
    shift: jax.Array

    def fold(self, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the (D, O) kernel and (O,) bias that map normalised inputs as scale, shift and dense layer do.

        Gradients of scale and shift then need no pass over the tokens.
        """
        return self.scale[:, None] * kernel, self.shift @ kernel + bias

    def apply(self, x: jax.Array) -> jax.Array:
        """Returns (..., D) inputs scaled and shifted."""
        scale, shift = (lax.broadcast_to_rank(values, x.ndim) for values in self)
        return x * scale + shift


def _product(a: jax.Array, b: jax.Array, left: int, right: int, batch: int = 0) -> jax.Array:
    """Multiplies matrices over axis `left` of a and `right` of b, with `batch` leading axes in common."""
    axes = tuple(range(batch))
    return lax.dot_general(a, b, (((left,), (right,)), (axes, axes)))


def _turn(x: jax.Array) -> jax.Array:
    """Transposes the last two axes in memory, as products that read a left side by columns are slow on a CPU."""
    return lax.optimization_barrier(x.swapaxes(-1, -2))


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Maps (..., I) to (..., O) by a (I, O) kernel and a (O,) bias."""
    return _product(x, kernel, x.ndim - 1, 0) + lax.broadcast_to_rank(bias, x.ndim)


def _dense_forward(x, kernel, bias):
    return dense(x, kernel, bias), (x, kernel)


def _dense_backward(saved, slope):
    x, kernel = saved
    flat_x, flat_slope = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    if flat_x.shape[1] <= flat_slope.shape[1]:  # the narrower side is turned
        kernel_slope = _product(_turn(flat_x), flat_slope, 1, 0)
    else:
        kernel_slope = _product(_turn(flat_slope), flat_x, 1, 0).T
    return _product(flat_slope, kernel, 1, 1).reshape(x.shape), kernel_slope, flat_slope.sum(axis=0)


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def normalize(x: jax.Array) -> jax.Array:
    """Returns (..., D) inputs with mean 0 and variance 1 over the last axis (Ba et al. 2016)."""
    return _normalize_forward(x)[0]


def _normalize_forward(x):
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.maximum((x * x).mean(axis=-1, keepdims=True) - mean * mean, 0.0)
    rate = lax.rsqrt(variance + EPSILON)
    normalized = (x - mean) * rate
    return normalized, (normalized, rate)


def _normalize_backward(saved, slope):
    normalized, rate = saved
    along = (slope * normalized).mean(axis=-1, keepdims=True)
    return ((slope - slope.mean(axis=-1, keepdims=True) - normalized * along) * rate,)


normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Returns GELU in its tanh form (Hendrycks and Gimpel 2016); saves its derivative for the gradient."""
    return _gelu_forward(x)[0]


def _gelu_forward(x):
    tanh = jnp.tanh(TANH_SCALE * (x + TANH_CUBE * x * x * x))
    derivative = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * TANH_SCALE * (1 + 3 * TANH_CUBE * x * x)
    return 0.5 * x * (1 + tanh), derivative


gelu.defvjp(_gelu_forward, lambda derivative, slope: (slope * derivative,))


class Rotary(NamedTuple):
    """Rotary encoding (Su et al. 2021) of tokens: cosines and sines of their angles, (B, 1, L, size) each.

    The width of a head is `size`; its first half is paired with its second, and the sines of the first are negative.
    """

    cosines: jax.Array
    sines: jax.Array

    def rotate(self, x: jax.Array) -> jax.Array:
        """Rotates (B, H, L, size) queries or keys."""
        first, second = jnp.split(x, 2, axis=-1)
        output = x * self.cosines + jnp.concatenate([second, first], axis=-1) * self.sines
        return output.astype(x.dtype)

    def inverse(self) -> "Rotary":
        """Returns the rotation by the opposite angles, the gradient of `rotate`."""
        return Rotary(self.cosines, -self.sines)


def _rotate(x: jax.Array, rotary: Rotary | None) -> jax.Array:
    return x if rotary is None else rotary.rotate(x)


def _split_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """Maps (B, L, D) to (B, H, L, D / H)."""
    rows, length, width = x.shape
    return x.reshape(rows, length, num_heads, width // num_heads).transpose(0, 2, 1, 3)


def _join_heads(x: jax.Array) -> jax.Array:
    rows, heads, length, size = x.shape
    return x.transpose(0, 2, 1, 3).reshape(rows, length, heads * size)


def _exponentials(query: jax.Array, key: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns exponentials of the scores of (B, H, Q, size) and (B, H, L, size), and the inverse of their sums."""
    scores = _product(query, key, 3, 3, 2)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32)) + bias
    exponentials = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials, 1.0 / exponentials.sum(axis=-1, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(
    queries: jax.Array,
    keys_values: jax.Array,
    bias: jax.Array,
    query_rotary: Rotary | None,
    key_rotary: Rotary | None,
    num_heads: int,
) -> jax.Array:
    """Computes multi-head attention (Vaswani et al. 2017) with a bias on the scores and rotary encodings.

    Args:
      queries: (B, Q, D).
      keys_values: (B, L, 2 D), the keys of all heads, then their values.
      bias: (B, H or 1, Q, L) float32, from `encoder.attention_bias`; its gradient is taken to be 0.
      query_rotary: of the queries, or None; its gradient is taken to be 0.
      key_rotary: of the keys, or None; likewise.
      num_heads: H.

    Returns:
      (B, Q, D).
    """
    return _attend_forward(queries, keys_values, bias, query_rotary, key_rotary, num_heads)[0]


def attention_weights(queries, keys_values, bias, query_rotary, key_rotary, num_heads: int) -> jax.Array:
    """Returns the (B, H, Q, L) float32 weights that `attend` gives the tokens."""
    query, key, _ = _prepare(queries, keys_values, query_rotary, key_rotary, num_heads)
    exponentials, inverse = _exponentials(query, key, bias)
    return exponentials * inverse


def _prepare(queries, keys_values, query_rotary, key_rotary, num_heads: int) -> tuple[jax.Array, ...]:
    width = queries.shape[-1]
    query = _split_heads(queries * (width // num_heads) ** -0.5, num_heads)
    key, value = (_split_heads(part, num_heads) for part in jnp.split(keys_values, 2, axis=-1))
    return _rotate(query, query_rotary), _rotate(key, key_rotary), value


def _attend_forward(queries, keys_values, bias, query_rotary, key_rotary, num_heads: int):
    query, key, value = _prepare(queries, keys_values, query_rotary, key_rotary, num_heads)
    exponentials, inverse = _exponentials(query, key, bias)
    # Divided after the product with the values, so that no pass over (B, H, Q, L) is needed for it.
    mean = _product(exponentials.astype(value.dtype), value, 3, 2, 2) * inverse.astype(value.dtype)
    output = _join_heads(mean)
    return output, (query, key, value, exponentials, inverse, output, query_rotary, key_rotary)


def _attend_backward(num_heads: int, saved, slope):
    query, key, value, exponentials, inverse, output, query_rotary, key_rotary = saved
    dtype, size = value.dtype, query.shape[-1]
    slope = _split_heads(slope, num_heads)
    scaled = slope * inverse.astype(dtype)
    shift = (_split_heads(output, num_heads) * slope).sum(axis=-1, keepdims=True) * inverse
    score_slope = (exponentials * (_product(scaled, value, 3, 3, 2) - shift)).astype(dtype)
    query_slope = _product(score_slope, key, 3, 2, 2)
    # The weights are read as they lie and the narrow side is turned; the result has the width as its first axis.
    key_slope, value_slope = (
        lax.optimization_barrier(_product(_turn(narrow), wide, 3, 2, 2)).swapaxes(-1, -2)
        for narrow, wide in ((query, score_slope), (scaled, exponentials.astype(dtype)))
    )
    if query_rotary is not None and key_rotary is not None:
        query_slope = query_rotary.inverse().rotate(query_slope)
        key_slope = key_rotary.inverse().rotate(key_slope)
    keys_values_slope = jnp.concatenate([_join_heads(key_slope), _join_heads(value_slope)], axis=-1)
    return _join_heads(query_slope) * size**-0.5, keys_values_slope, None, None, None


attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def code_losses(
    queries: jax.Array, table: jax.Array, bias: jax.Array, labels: jax.Array, weights: jax.Array
) -> dict[str, jax.Array]:
    """Sums the cross-entropy of codes and their hits, without holding all logits `queries @ table.T + bias` at once.

    Args:
      queries: (N, E), one for each position.
      table: (V, E).
      bias: (V,).
      labels: (N,) ints, the code at each position.
      weights: (N,), 0 where a position does not count. Positions of weight 0 cost nothing. Not differentiated.

    Returns:
      Weighted sums: `loss` (nats), and `accuracy`, `top5_accuracy` and `top20_accuracy` (ties count as errors).
    """
    return _sum_blocks(_score_codes, (*SUMS,), queries, table, bias, (labels, weights), with_gradient=False)[0]


def _code_losses_forward(queries, table, bias, labels, weights):
    return _sum_blocks(_score_codes, (*SUMS,), queries, table, bias, (labels, weights), with_gradient=True)


def _code_losses_backward(slopes, sums_slope):
    return (*(slope * sums_slope["loss"].astype(slope.dtype) for slope in slopes), None, None)


code_losses.defvjp(_code_losses_forward, _code_losses_backward)
CUTOFFS = {"accuracy": 1, "top5_accuracy": 5, "top20_accuracy": 20}
SUMS = ("loss", *CUTOFFS)


@jax.custom_vjp
def absence_loss(
    queries: jax.Array, table: jax.Array, bias: jax.Array, is_target: jax.Array, weights: jax.Array
) -> jax.Array:
    """Sums the binary cross-entropy of target codes as if none occurred, without holding all logits at once.

    Subtracting the logits of the codes that do occur gives the cross-entropy: softplus(z) - z is that of an event.

    Args:
      queries: (N, E), one for each position.
      table: (V, E).
      bias: (V,).
      is_target: (V,) bool.
      weights: (N,), 0 where a position does not count. Positions of weight 0 cost nothing. Not differentiated.

    Returns:
      The weighted sum (nats).
    """
    score = functools.partial(_score_absence, is_target)
    return _sum_blocks(score, ("loss",), queries, table, bias, (weights,), with_gradient=False)[0]["loss"]


def _absence_loss_forward(queries, table, bias, is_target, weights):
    score = functools.partial(_score_absence, is_target)
    sums, slopes = _sum_blocks(score, ("loss",), queries, table, bias, (weights,), with_gradient=True)
    return sums["loss"], slopes


def _absence_loss_backward(slopes, loss_slope):
    return (*(slope * loss_slope.astype(slope.dtype) for slope in slopes), None, None)


absence_loss.defvjp(_absence_loss_forward, _absence_loss_backward)


def block_size(num_positions: int, vocab_size: int) -> int:
    """Returns how many positions are scored at a time: all but on a CPU, where blocks stay in the cache."""
    if jax.default_backend() != "cpu":
        return num_positions
    return min(num_positions, 2 * BLOCK if vocab_size < SMALL_VOCABULARY else BLOCK)


def _sum_blocks(score, names: tuple[str, ...], queries, table, bias, columns: tuple, with_gradient: bool):
    """Scores positions in blocks: returns the sums, and the gradients of the loss by queries, table and bias if wanted.

    Args:
      score: (query, table, bias, *columns of a block) -> sums by name, and the gradient of the loss by the logits.
      names: of the sums.
      queries: (N, E).
      table: (V, E).
      bias: (V,).
      columns: (N,) each; the last are the weights.
      with_gradient: whether gradients are wanted.
    """
    num_positions, block, weights = len(queries), block_size(len(queries), len(table)), columns[-1]
    # Positions that count come first, so that the blocks after them need not be computed.
    order = jnp.argsort(weights <= 0, stable=True)
    order = jnp.pad(order, (0, -num_positions % block), constant_values=num_positions)
    sorted_queries, *sorted_columns = (
        jnp.take(values, order, axis=0, mode="fill", fill_value=0) for values in (queries, *columns)
    )

    def add_block(number, carry):
        sums, query_slopes, parameter_slope = carry
        query, *rest = (
            lax.dynamic_slice_in_dim(values, number * block, block) for values in (sorted_queries, *sorted_columns)
        )
        block_sums, logit_slope = score(query, table, bias, *rest)
        sums = jax.tree.map(jnp.add, sums, block_sums)
        if not with_gradient:
            return sums, query_slopes, parameter_slope
        logit_slope = lax.optimization_barrier(logit_slope.astype(query.dtype))
        query_slope = _product(logit_slope, table, 1, 0)
        query_slopes = lax.dynamic_update_slice_in_dim(query_slopes, query_slope, number * block, 0)
        # The gradient of the bias is one more row of the product, as a sum over rows is slow.
        with_ones = _turn(jnp.concatenate([query, jnp.ones((block, 1), query.dtype)], axis=1))
        return sums, query_slopes, parameter_slope + _product(with_ones, logit_slope, 1, 0)

    zeros = {name: jnp.zeros((), jnp.promote_types(queries.dtype, jnp.float32)) for name in names}
    parameter_slope = jnp.zeros((table.shape[1] + 1, table.shape[0]), table.dtype)
    carry = zeros, jnp.zeros_like(sorted_queries), parameter_slope
    if block == num_positions:
        sums, query_slopes, parameter_slope = add_block(0, carry)
    else:
        num_blocks = (jnp.sum(weights > 0) + block - 1) // block
        sums, query_slopes, parameter_slope = lax.fori_loop(0, num_blocks, add_block, carry)
    query_slopes = jnp.zeros_like(queries).at[order].set(query_slopes, mode="drop")
    return sums, (query_slopes, parameter_slope[:-1].T, parameter_slope[-1])


def _block_logits(query, table, bias):
    return (_product(query, table, 1, 1) + bias[None]).astype(jnp.promote_types(query.dtype, jnp.float32))


def _score_absence(is_target, query, table, bias, weight):
    """Returns the sum of `absence_loss` of one block, and its (block, V) gradient by the logits."""
    logits, weights = _block_logits(query, table, bias), jnp.where(is_target[None, :], weight[:, None], 0.0)
    return {"loss": (jax.nn.softplus(logits) * weights).sum()}, jax.nn.sigmoid(logits) * weights


def _score_codes(query, table, bias, label, weight):
    """Returns the sums of `code_losses` of one block, and the (block, V) gradient of its loss by the logits."""
    logits = _block_logits(query, table, bias)
    label_logits = jnp.take_along_axis(logits, label[:, None], axis=1)
    highest = logits.max(axis=-1, keepdims=True)
    exponentials = jnp.exp(logits - highest)
    totals = exponentials.sum(axis=-1, keepdims=True)
    losses = (jnp.log(totals) + highest - label_logits)[:, 0]
    ranks = (logits >= label_logits).sum(axis=-1)
    sums = {"loss": (losses * weight).sum()}
    sums |= {name: ((ranks <= cutoff) * weight).sum() for name, cutoff in CUTOFFS.items()}
    is_label = jnp.arange(len(table))[None, :] == label[:, None]
    return sums, exponentials * (weight[:, None] / totals) - jnp.where(is_label, weight[:, None], 0.0)
