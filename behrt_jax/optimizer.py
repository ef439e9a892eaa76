"""AdamW with warm-up, cosine decay, decay on matrices only, and clipping by global norm."""

import dataclasses

import jax
import optax

FINAL_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The section `optimizer` of a recipe.

    Attributes:
      learning_rate: the peak.
      warmup_share: share of the run in which the learning rate rises linearly, 0 <= share < 1.
      weight_decay: decoupled decay of matrices (Loshchilov and Hutter 2019); vectors are not decayed.
      b2: decay of the second moment.
      clip_norm: the largest global norm of a gradient.
    """

    learning_rate: float
    warmup_share: float
    weight_decay: float
    b2: float
    clip_norm: float

    def __post_init__(self):
        for key in ("learning_rate", "clip_norm"):
            if getattr(self, key) <= 0:
                raise ValueError(f"optimizer.{key}: found {getattr(self, key)}; expected more than 0")
        if self.weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay: found {self.weight_decay}; expected 0 or more")
        for key in ("warmup_share", "b2"):
            if not 0 <= getattr(self, key) < 1:
                raise ValueError(f"optimizer.{key}: found {getattr(self, key)}; expected 0 or more and less than 1")


def make_schedule(config: OptimizerConfig, num_steps: int) -> optax.Schedule:
    """Returns the learning rate of update 0, 1, ... `num_steps - 1`.

    It rises to the peak over the warm-up (the first update is not zero), then falls along a cosine to 1% of the peak at
    the last update.
    """
    peak = config.learning_rate
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=peak,
        warmup_steps=int(config.warmup_share * num_steps),
        decay_steps=num_steps,
        end_value=FINAL_SHARE * peak,
    )
    return lambda count: schedule(count + 1)


def make_optimizer(
    config: OptimizerConfig, num_steps: int, schedule: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """Returns the optimizer of a run of `num_steps` updates, with the schedule of `make_schedule` or another."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule or make_schedule(config, num_steps),
            b2=config.b2,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )
