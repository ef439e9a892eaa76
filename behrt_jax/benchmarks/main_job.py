"""The contestant of the main job: pre-trains by a recipe and finds when accuracies were reached. Started by `worker`.

Also runs with another checkout on the path: it uses only what older versions have too.
"""

import importlib
import tempfile
import time
from pathlib import Path

import behrt_jax
from behrt_jax.training import metrics_writer


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the contestant; see `worker`. Its `measure` pre-trains once, from MEDS events on, without baselines."""
    del batches
    config = importlib.import_module(f"behrt_jax.recipes.{settings['tier']}").get_config()
    config.data.path = settings["data"]
    config.train.update(num_steps=settings["updates"], evaluate_every=settings["evaluate_every"])

    def measure() -> dict:
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
            config.data.prepared_dir = f"{folder}/prepared"
            begin = time.perf_counter()
            behrt_jax.pretrain(config, f"{folder}/run", baselines=False)
            total = time.perf_counter() - begin
            lines = [line for line in metrics_writer.read_metrics(Path(folder) / "run") if line["split"] == "tuning"]
        return {"lines": [(line["seconds"], line["mlm/accuracy"]) for line in lines], "total_seconds": total}

    return {"measure": measure}
