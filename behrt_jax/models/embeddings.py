"""Token embeddings: code, age, visit, position, and time since the previous visit."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout
from behrt_jax.models.layers import Dense, LayerNorm, ramps

# Codes start larger than the embeddings added to them; with BERT's 0.02 for all, learning is slower (docs/choices.md).
CODE_INITIALIZER = nn.initializers.normal(0.1)
INITIALIZER = nn.initializers.normal(0.02)
# In robust standard deviations from the median of a code; values are clipped to the outer ones.
VALUE_KNOTS = (-10.0, -6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0)
SINE_SCALE = 0.03  # a sine of this amplitude is about as large as a table initialised with standard deviation 0.02


class AgeEmbedding(nn.Module):
    """Embeds ages in bins of years, as BEHRT (Li et al. 2020) does.

    Attributes:
      dim: width.
      max_age: years; ages from here on share the last bin.
      bin_size: years per bin.
    """

    dim: int
    max_age: float = 100.0
    bin_size: float = 5.0

    @nn.compact
    def __call__(self, ages: jax.Array) -> jax.Array:
        """Maps (B, L) float ages in years to (B, L, dim); negative ages count as 0, NaN as unknown."""
        last = int(self.max_age // self.bin_size)
        bins = jnp.clip(jnp.nan_to_num(ages) // self.bin_size, 0, last).astype(jnp.int32)
        rows = jnp.where(jnp.isnan(ages), 0, bins + 1)
        return nn.Embed(last + 2, self.dim, embedding_init=INITIALIZER, name="table")(rows)


class VisitEmbedding(nn.Module):
    """Embeds the visit number.

    Attributes:
      dim: width.
      max_visits: rows of the table; later visits share the last row.
    """

    dim: int
    max_visits: int = 512

    @nn.compact
    def __call__(self, visit_ids: jax.Array) -> jax.Array:
        """Maps (B, L) int visit ids from 0 to (B, L, dim)."""
        rows = jnp.clip(visit_ids, 0, self.max_visits - 1)
        return nn.Embed(self.max_visits, self.dim, embedding_init=INITIALIZER, name="table")(rows)


class PositionalEmbedding(nn.Module):
    """Embeds the position in the patient's sequence with a learned table.

    Attributes:
      dim: width.
      max_positions: rows of the table; later positions share the last row.
    """

    dim: int
    max_positions: int

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        """Maps (B, L) int positions from 0 to (B, L, dim)."""
        rows = jnp.clip(positions, 0, self.max_positions - 1)
        return nn.Embed(self.max_positions, self.dim, embedding_init=INITIALIZER, name="table")(rows)


class SinusoidalPositionalEncoding(nn.Module):
    """Interleaved sines and cosines of the position (Vaswani et al. 2017); has no parameters.

    Attributes:
      dim: width, even.
      base: wavelengths range from 2 pi to 2 pi times `base`.
    """

    dim: int
    base: float = 10_000.0

    def __call__(self, positions: jax.Array) -> jax.Array:
        """Maps (B, L) positions to (B, L, dim)."""
        frequencies = self.base ** (-jnp.arange(0, self.dim, 2) / self.dim)
        angles = positions[..., None] * frequencies[None, None, :]
        return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(*positions.shape, self.dim)


class TimeEmbedding(nn.Module):
    """Embeds the days since the previous visit in bins, either of equal width or two per doubling.

    Attributes:
      dim: width.
      num_bins: rows of the table; longer times share the last row. 28 logarithmic bins cover times up to 33 years.
      bin_days: days per bin; 0 for logarithmic bins.
    """

    dim: int
    num_bins: int = 28
    bin_days: float = 0.0

    @nn.compact
    def __call__(self, time_deltas: jax.Array) -> jax.Array:
        """Maps (B, L) float days to (B, L, dim); negative days count as 0. The first logarithmic bin ends at 0.4."""
        days = jnp.maximum(jnp.nan_to_num(time_deltas), 0.0)  # infinity // 7 would be NaN
        # The small constant keeps rounding from putting an exact power of two (8,191 days) into the bin below.
        bins = days // self.bin_days if self.bin_days else jnp.floor(2.0 * jnp.log2(1.0 + days) + 1e-5)
        rows = jnp.clip(bins, 0, self.num_bins - 1).astype(jnp.int32)
        return nn.Embed(self.num_bins, self.dim, embedding_init=INITIALIZER, name="table")(rows)


class ValueModulation(nn.Module):
    """Scales and shifts a code's embedding by a small function of its value (FiLM, Perez et al. 2018).

    At initialisation it changes nothing.
    """

    @nn.compact
    def __call__(self, embedded: jax.Array, values: jax.Array) -> jax.Array:
        """Maps (B, L, dim) embeddings and (B, L) values to (B, L, dim); unchanged where values are NaN."""
        dim, zeros = embedded.shape[-1], nn.initializers.zeros_init()
        hidden = nn.gelu(nn.Dense(dim, name="input")(ramps(values, VALUE_KNOTS)))
        scale, shift = jnp.split(nn.Dense(2 * dim, kernel_init=zeros, name="output")(hidden), 2, axis=-1)
        return jnp.where(jnp.isnan(values)[..., None], embedded, embedded * (1.0 + scale) + shift)


class BEHRTEmbedding(nn.Module):
    """The normalised sum of code, age, visit, position and time embeddings, projected to the hidden width.

    Attributes:
      config: architecture.
    """

    config: BEHRTConfig

    def setup(self):
        """Declares the tables and the projection."""
        config = self.config
        dim = config.embedding_dim
        self.codes = nn.Embed(config.vocab_size, dim, embedding_init=CODE_INITIALIZER)
        if config.value_encoding == "film":
            self.values = ValueModulation()
        self.ages = AgeEmbedding(dim, config.max_age, config.age_bin_size)
        self.visits = VisitEmbedding(dim, config.max_visits)
        if config.position_encoding == "learned":
            self.positions = PositionalEmbedding(dim, config.max_positions)
        elif config.position_encoding == "sinusoidal":
            self.positions = SinusoidalPositionalEncoding(dim)
            self.position_scale = self.param("position_scale", nn.initializers.constant(SINE_SCALE), ())
        if config.time_bins:
            self.times = TimeEmbedding(dim, config.time_bins, config.time_bin_days)
        self.norm = LayerNorm()
        self.projection = Dense(config.hidden_dim)
        self.dropout = Dropout(config.dropout)

    def __call__(
        self, codes, ages, visit_ids, positions, time_deltas=None, deterministic: bool = True, values=None
    ) -> jax.Array:
        """Embeds (B, L) tokens to (B, L, D); see `BEHRT.__call__` for the arguments."""
        config = self.config
        x = self.codes(codes)
        if config.value_encoding == "film":
            if values is None:
                raise ValueError(
                    "values: found None; expected (B, L) scaled values, NaN where a token has none, as "
                    "model.value_encoding='film'; prepare the data with data.value_encoding='continuous'"
                )
            x = self.values(x, values)
        x = x + self.visits(visit_ids) + self.ages(ages)
        if config.position_encoding != "none":
            x = x + self.positions(positions) * (
                self.position_scale if config.position_encoding == "sinusoidal" else 1.0
            )
        if config.time_bins:
            if time_deltas is None:
                raise ValueError(
                    "time_deltas: found None; expected (B, L) days since the previous visit, as model.time_bins is "
                    f"{config.time_bins}"
                )
            x = x + self.times(time_deltas)
        normalized, affine = self.norm(x)
        if deterministic or not config.dropout:
            return self.projection(normalized, affine)
        return self.projection(self.dropout(affine.apply(normalized), deterministic))

    def attend(self, query: jax.Array) -> jax.Array:
        """Scores (..., embedding_dim) queries against the code table: (..., V)."""
        return self.codes.attend(query)


CODE_TABLE = "/behrt/embedding/codes/embedding"  # path suffix of the (V, embedding_dim) code table
