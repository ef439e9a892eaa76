"""Quick start of the reference implementation: the small model on a batch of random patients.

python -m experiments.quickstart
"""

import resource
import sys

import jax
import numpy as np

from behrt_jax import BEHRT, BEHRTConfig, count_parameters


def main() -> None:
    """Runs the command."""
    config = BEHRTConfig.small(vocab_size=1000)
    model = BEHRT(config)

    rng = np.random.default_rng(0)
    shape = (16, 50)  # patients, tokens
    codes = rng.integers(0, config.vocab_size, shape)
    ages = np.sort(rng.uniform(0, 100, shape)).astype(np.float32)  # years
    visit_ids = np.sort(rng.integers(0, 10, shape))
    attention_mask = np.ones(shape, np.int32)

    params = jax.jit(model.init)(jax.random.key(0), codes, ages, visit_ids, attention_mask)
    hidden = model.apply(params, codes, ages, visit_ids, attention_mask)
    patients = model.apply(params, codes, ages, visit_ids, attention_mask, method="get_patient_embedding")

    print(f"Model parameters: {count_parameters(params):,}")
    print(f"Output shape: {hidden.shape}")  # pyright: ignore
    print(f"Patient embedding shape: {patients.shape}")  # pyright: ignore
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on a Mac, kilobytes elsewhere
    print(f"Peak memory: {peak / (1e9 if sys.platform == 'darwin' else 1e6):.1f} GB")


if __name__ == "__main__":
    main()
