"""Configuration of the architecture, validated on construction."""

import dataclasses
from typing import Any

CHOICES = {
    "position_encoding": ("learned", "sinusoidal", "none"),
    "rotary": ("none", "positions", "ages"),
    "encoder": ("transformer", "lstm"),
    "pooling": ("cls", "last", "mean", "max", "attention"),
    "dtype": ("float32", "bfloat16"),
    "value_encoding": ("none", "film"),
}


@dataclasses.dataclass(frozen=True)
class BEHRTConfig:
    """Architecture of a BEHRT encoder: the section `model` of a recipe. Defaults follow the reference.

    Attributes:
      vocab_size: V, including special tokens.
      embedding_dim: width of the embedding tables; projected to `hidden_dim`.
      hidden_dim: D.
      num_layers: number of encoder blocks.
      num_heads: H; must divide `hidden_dim`.
      feedforward_dim: width of the feed-forward layer.
      max_positions: rows of the table of `position_encoding="learned"`; later positions share the last row.
      max_visits: rows of the visit table; later visits share the last row.
      max_age: years; older ages share the last bin.
      age_bin_size: years per bin.
      position_encoding: `learned`, `sinusoidal` or `none`.
      time_bins: rows of the table of days since the previous visit; 0 disables it.
      time_bin_days: days per bin; 0 for logarithmic bins, two per doubling. The reference uses 53 bins of 7 days.
      rotary: rotary encoding of queries and keys by `positions` or `ages` (dates where birth is unknown), or `none`.
      visit_bias: whether attention scores fall with the number of visits between two tokens, with one slope per head.
      causal: whether a token attends only to tokens recorded no later than itself.
      encoder: `transformer` or `lstm`.
      pooling: how patient-level heads pool tokens: `cls`, `last`, `mean`, `max` or `attention`.
      dropout: dropout rate after the embeddings and in each residual branch.
      value_encoding: how a token's value enters its code's embedding: `none`, or `film`, by a learned scale and shift.
      dtype: of the matrix products in Transformer blocks, `float32` or `bfloat16`; everything else is float32.
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
    position_encoding: str = "learned"
    time_bins: int = 0
    time_bin_days: float = 0.0
    rotary: str = "none"
    visit_bias: bool = False
    causal: bool = False
    encoder: str = "transformer"
    pooling: str = "mean"
    dropout: float = 0.1
    dtype: str = "float32"
    value_encoding: str = "none"

    def __post_init__(self):
        for key in ("vocab_size", "embedding_dim", "hidden_dim", "num_layers", "num_heads", "feedforward_dim"):
            self._expect(getattr(self, key) >= 1, key, "1 or more")
        for key, choices in CHOICES.items():
            self._expect(getattr(self, key) in choices, key, f"one of {', '.join(choices)}")
        self._expect(self.max_visits >= 1, "max_visits", "1 or more")
        minimum = 1 if self.position_encoding == "learned" else 0
        self._expect(self.max_positions >= minimum, "max_positions", f"{minimum} or more")
        if self.hidden_dim % self.num_heads:
            raise ValueError(
                f"model.hidden_dim: {self.hidden_dim} is not divisible by model.num_heads={self.num_heads}; "
                f"expected a multiple, such as {-(-self.hidden_dim // self.num_heads) * self.num_heads}"
            )
        width = self.hidden_dim // self.num_heads
        if self.rotary != "none" and width % 2:
            raise ValueError(
                f"model.rotary: the width of a head, hidden_dim / num_heads, is {width}; expected an even one"
            )
        if self.position_encoding == "sinusoidal":
            self._expect(self.embedding_dim % 2 == 0, "embedding_dim", "an even width for a sinusoidal encoding")
        if self.max_age <= 0 or not 0 < self.age_bin_size <= self.max_age:
            problem = f"found {self.age_bin_size} with max_age={self.max_age}"
            raise ValueError(f"model.age_bin_size: {problem}; expected 0 < age_bin_size <= max_age")
        for key in ("time_bins", "time_bin_days"):
            self._expect(getattr(self, key) >= 0, key, "0 or more")
        self._expect(0 <= self.dropout < 1, "dropout", "0 <= dropout < 1")

    def _expect(self, holds: bool, key: str, expected: str) -> None:
        if not holds:
            raise ValueError(f"model.{key}: found {getattr(self, key)}; expected {expected}")

    @property
    def sees_future(self) -> bool:
        """Whether the state of a token depends on later visits."""
        return not self.causal and self.encoder != "lstm"

    @classmethod
    def small(cls, vocab_size: int, **overrides: Any) -> "BEHRTConfig":
        """Returns the config for laptops: 506,624 parameters at vocabulary size 1,000."""
        sizes = {"embedding_dim": 64, "hidden_dim": 128, "num_layers": 2, "num_heads": 4}
        return cls(vocab_size, **{**sizes, "feedforward_dim": 512, "max_positions": 50, **overrides})

    @classmethod
    def medium(cls, vocab_size: int, **overrides: Any) -> "BEHRTConfig":
        """Returns the middle-sized config: 2,351,360 parameters at vocabulary size 1,000."""
        sizes = {"embedding_dim": 128, "hidden_dim": 256, "num_layers": 4, "num_heads": 8}
        return cls(vocab_size, **{**sizes, "feedforward_dim": 512, "max_positions": 100, **overrides})

    @classmethod
    def large(cls, vocab_size: int, **overrides: Any) -> "BEHRTConfig":
        """Returns the config for GPUs from an A40 up: 13,193,728 parameters at vocabulary size 1,000."""
        sizes = {"embedding_dim": 256, "hidden_dim": 512, "num_layers": 6, "num_heads": 8}
        return cls(vocab_size, **{**sizes, "feedforward_dim": 1024, "max_positions": 200, **overrides})
