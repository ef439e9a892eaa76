"""What a token is: its code, how old the patient is, which visit it is in, where it stands."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.dropout import Dropout

# Codes begin larger than what is added to them; all at BERT's 0.02 learns far more slowly (docs/choices.md).
CODE_INITIALIZER = nn.initializers.normal(0.1)
INITIALIZER = nn.initializers.normal(0.02)


class AgeEmbedding(nn.Module):
    """Embeds ages in bins of years, as BEHRT (Li et al. 2020) does.

    Attributes:
      dim: width.
      max_age: years; ages from here on share the last bin.
      bin_size: years a bin.
    """

    dim: int
    max_age: float = 100.0
    bin_size: float = 5.0

    @nn.compact
    def __call__(self, ages: jax.Array) -> jax.Array:
        """Maps (B, L) float ages in years to (B, L, dim); below 0 counts as 0, NaN is the age unknown."""
        last = int(self.max_age // self.bin_size)
        known = jnp.clip(jnp.nan_to_num(ages) // self.bin_size, 0, last).astype(jnp.int32)
        bins = jnp.where(jnp.isnan(ages), 0, known + 1)
        return nn.Embed(last + 2, self.dim, embedding_init=INITIALIZER, name="table")(bins)


class VisitEmbedding(nn.Module):
    """Embeds the number of the visit.

    Attributes:
      dim: width.
      max_visits: rows of the table; later visits share the last.
    """

    dim: int
    max_visits: int = 512

    @nn.compact
    def __call__(self, visit_ids: jax.Array) -> jax.Array:
        """Maps (B, L) int visit ids from 0 to (B, L, dim)."""
        rows = jnp.clip(visit_ids, 0, self.max_visits - 1)
        return nn.Embed(self.max_visits, self.dim, embedding_init=INITIALIZER, name="table")(rows)


class PositionalEmbedding(nn.Module):
    """Embeds the position in the patient's sequence by a learned table.

    Attributes:
      dim: width.
      max_positions: rows of the table; later positions share the last.
    """

    dim: int
    max_positions: int

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        """Maps (B, L) int positions from 0 to (B, L, dim)."""
        rows = jnp.clip(positions, 0, self.max_positions - 1)
        return nn.Embed(self.max_positions, self.dim, embedding_init=INITIALIZER, name="table")(rows)


class TimeEmbedding(nn.Module):
    """Embeds the days since the previous visit in logarithmic bins, two for each doubling.

    Attributes:
      dim: width.
      num_bins: rows of the table; 28 tell days apart up to 33 years, and longer times share the last.
    """

    dim: int
    num_bins: int = 28

    @nn.compact
    def __call__(self, time_deltas: jax.Array) -> jax.Array:
        """Maps (B, L) float days to (B, L, dim); below 0 counts as 0, which has a bin of its own with less than 0.4."""
        bins = jnp.floor(2.0 * jnp.log2(1.0 + jnp.maximum(time_deltas, 0.0)))
        rows = jnp.clip(bins, 0, self.num_bins - 1).astype(jnp.int32)
        return nn.Embed(self.num_bins, self.dim, embedding_init=INITIALIZER, name="table")(rows)


class BEHRTEmbedding(nn.Module):
    """The sum of code, age, visit, position and time embeddings, normalised, and projected to the hidden width.

    Attributes:
      config: sizes and choices.
    """

    config: BEHRTConfig

    def setup(self):
        """Declares the tables and the projection."""
        config = self.config
        self.codes = nn.Embed(config.vocab_size, config.embedding_dim, embedding_init=CODE_INITIALIZER)
        self.ages = AgeEmbedding(config.embedding_dim, config.max_age, config.age_bin_size)
        self.visits = VisitEmbedding(config.embedding_dim, config.max_visits)
        if config.max_positions:
            self.positions = PositionalEmbedding(config.embedding_dim, config.max_positions)
        if config.time_bins:
            self.times = TimeEmbedding(config.embedding_dim, config.time_bins)
        self.norm = nn.LayerNorm()
        self.projection = nn.Dense(config.hidden_dim)
        self.dropout = Dropout(config.dropout)

    def __call__(self, codes, ages, visit_ids, positions, time_deltas=None, deterministic: bool = True) -> jax.Array:
        """Embeds (B, L) tokens to (B, L, D); see `BEHRT.__call__` for the arguments."""
        x = self.codes(codes) + self.ages(ages) + self.visits(visit_ids)
        if self.config.max_positions:
            x = x + self.positions(positions)
        if self.config.time_bins:
            if time_deltas is None:
                raise ValueError("time_deltas: found None; expected (B, L) days, as model.time_bins is not 0")
            x = x + self.times(time_deltas)
        return self.projection(self.dropout(self.norm(x), deterministic))

    def attend(self, query: jax.Array) -> jax.Array:
        """Scores (..., embedding_dim) queries against the code table: (..., V)."""
        return self.codes.attend(query)
