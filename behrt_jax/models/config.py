"""What a model takes: sizes and choices of the architecture, checked once."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class BEHRTConfig:
    """Sizes and choices of a BEHRT encoder; the section `model` of a recipe.

    Attributes:
      vocab_size: V, special tokens included.
      embedding_dim: width of the embedding tables; projected to `hidden_dim`.
      hidden_dim: D.
      num_layers: encoder blocks.
      num_heads: H; must divide `hidden_dim`.
      feedforward_dim: width of the feed-forward layer.
      max_positions: rows of the position table; later positions share the last. 0 leaves positions out.
      max_visits: rows of the visit table; later visits share the last.
      max_age: years; older ages share the last bin.
      age_bin_size: years a bin.
      time_bins: rows of the table of days since the previous visit, two a doubling. 0 leaves it out.
      visit_bias: whether attention falls with the number of visits between two tokens, by a slope for each head.
      rotary: whether attention tells the distance between positions by rotating queries and keys.
      dropout: share of activations dropped after the embeddings and in each residual branch.
    """

    vocab_size: int
    embedding_dim: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    feedforward_dim: int
    max_positions: int
    max_visits: int = 512
    max_age: int = 100
    age_bin_size: float = 5.0
    time_bins: int = 0
    visit_bias: bool = False
    rotary: bool = False
    dropout: float = 0.1

    def __post_init__(self):
        for key in (
            "vocab_size",
            "embedding_dim",
            "hidden_dim",
            "num_layers",
            "num_heads",
            "feedforward_dim",
            "max_visits",
        ):
            if getattr(self, key) < 1:
                raise ValueError(f"model.{key}: found {getattr(self, key)}; expected 1 or more")
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by model.num_heads={self.num_heads}; "
                f"expected a multiple, such as {-(-self.hidden_dim // self.num_heads) * self.num_heads}"
            )
        if self.rotary and self.hidden_dim // self.num_heads % 2:
            width = self.hidden_dim // self.num_heads
            raise ValueError(
                f"model.rotary: the width of a head, hidden_dim / num_heads, is {width}; expected an even one"
            )
        if self.max_age <= 0 or not 0 < self.age_bin_size <= self.max_age:
            found = f"found {self.age_bin_size} with max_age={self.max_age}"
            raise ValueError(f"model.age_bin_size: {found}; expected 0 < age_bin_size <= max_age")
        for key in ("max_positions", "time_bins"):
            if getattr(self, key) < 0:
                raise ValueError(f"model.{key}: found {getattr(self, key)}; expected 0 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout: found {self.dropout}; expected 0 <= dropout < 1")

    @classmethod
    def small(cls, vocab_size: int, **overrides: Any) -> "BEHRTConfig":
        """The laptop tier: 506,624 parameters at vocabulary 1,000."""
        sizes = {"embedding_dim": 64, "hidden_dim": 128, "num_layers": 2, "num_heads": 4}
        return cls(vocab_size, **{**sizes, "feedforward_dim": 512, "max_positions": 50, **overrides})

    @classmethod
    def medium(cls, vocab_size: int, **overrides: Any) -> "BEHRTConfig":
        """The middle tier: 2,351,360 parameters at vocabulary 1,000."""
        sizes = {"embedding_dim": 128, "hidden_dim": 256, "num_layers": 4, "num_heads": 8}
        return cls(vocab_size, **{**sizes, "feedforward_dim": 512, "max_positions": 100, **overrides})

    @classmethod
    def large(cls, vocab_size: int, **overrides: Any) -> "BEHRTConfig":
        """The tier for an A40 and up: 13,193,728 parameters at vocabulary 1,000."""
        sizes = {"embedding_dim": 256, "hidden_dim": 512, "num_layers": 6, "num_heads": 8}
        return cls(vocab_size, **{**sizes, "feedforward_dim": 1024, "max_positions": 200, **overrides})
