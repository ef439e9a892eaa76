"""The contestant of the main job: pre-trains by a recipe and finds when accuracies were reached. Started by `worker`.

Also runs with another checkout on the path: it uses only what older versions have too.
"""

import importlib
import tempfile
import time
from pathlib import Path

import behrt_jax
from behrt_jax.benchmarks import worker
from behrt_jax.training import metrics_writer

ACCURACIES = (0.55, 0.60)  # of masked codes, on tuning
EVALUATE_EVERY = 100  # updates; more often than the recipe, to find when


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the contestant; see `worker`. Its `measure` pre-trains once, from MEDS events on, without baselines."""
    del batches
    config = importlib.import_module(f"behrt_jax.recipes.{settings['tier']}").get_config()
    config.data.path = settings["data"]
    config.train.num_steps = settings["updates"] or config.train.num_steps
    config.train.evaluate_every = EVALUATE_EVERY

    def measure() -> dict:
        with tempfile.TemporaryDirectory(dir=settings["folder"]) as folder:
            config.data.prepared_dir = f"{folder}/prepared"
            begin = time.perf_counter()
            behrt_jax.pretrain(config, f"{folder}/run", baselines=False)
            total = time.perf_counter() - begin
            lines = [line for line in metrics_writer.read_metrics(Path(folder) / "run") if line["split"] == "tuning"]
        figures = {"accuracy": lines[-1]["mlm/accuracy"], "reached": find_times(lines), "total_seconds": total}
        return {**figures, "peak_bytes": worker.peak_bytes()}  # the worker's own is of before the job

    return {"measure": measure}


def find_times(lines: list[dict]) -> dict[str, float | None]:
    """Returns the seconds of training until each of `ACCURACIES` was reached, None where it was not.

    Args:
      lines: of `metrics.jsonl`, on tuning, by step.
    """
    return {
        f"{accuracy:.2f}": next((line["seconds"] for line in lines if line["mlm/accuracy"] >= accuracy), None)
        for accuracy in ACCURACIES
    }
