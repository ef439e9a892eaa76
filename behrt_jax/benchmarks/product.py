"""A large float32 matrix product as a contestant: the speed that the machine can reach, with the same threads."""

import jax
import numpy as np

SIZE = 1024


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the contestant; see `worker`."""
    matrix = np.random.default_rng(0).standard_normal((SIZE, SIZE)).astype(np.float32)
    product = jax.jit(jax.numpy.matmul)

    def step(number: int):
        jax.block_until_ready(product(matrix, matrix))
        return 0.0, 0

    return {"step": step, "read": lambda number: batches[number]["codes"], "measure": lambda: {"flops": 2 * SIZE**3}}
