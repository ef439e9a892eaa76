"""The contestant of start-up: imports what pre-training does before its first step. Started by `worker`."""

import behrt_jax.workflows.pretrain  # noqa: F401
from behrt_jax.benchmarks.train_step import start  # noqa: F401
