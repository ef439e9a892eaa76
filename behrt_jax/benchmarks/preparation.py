"""The contestant that prepares a data set, from MEDS events to tokens. Started by `worker`.

Also runs with another checkout on the path: it uses only what older versions have too.
"""

import dataclasses
import importlib
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the contestant; see `worker`. Each step prepares all of the data anew."""
    del batches
    recipe = importlib.import_module(f"behrt_jax.recipes.{settings['tier']}").get_config()
    config = dataclasses.replace(DataConfig(**recipe.data), path=settings["data"])

    def step(number: int):
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
            prepare(dataclasses.replace(config, prepared_dir=folder))
        return 0.0, 0

    def read(number: int) -> np.ndarray:
        """Returns a 1 for each event of the data."""
        events = pl.scan_parquet(Path(settings["data"]) / "data" / "**" / "*.parquet")
        return np.ones(events.select(pl.len()).collect().item(), np.int8)

    return {"step": step, "read": read, "measure": dict}
