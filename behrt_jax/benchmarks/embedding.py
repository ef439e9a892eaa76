"""The contestant that embeds the train patients of the bundled data as `behrt_jax.embed` does. Started by `worker`.

Also runs with another checkout on the path: it uses only what older versions have too.
"""

import importlib

import jax
import numpy as np

from behrt_jax.data import batches as data_batches
from behrt_jax.data.config import DataConfig
from behrt_jax.data.dataset import Patients
from behrt_jax.embeddings.patients import embed
from behrt_jax.models.behrt import count_parameters
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.training import workdir


def start(settings: dict, batches: list[dict]) -> dict:
    """Starts the contestant; see `worker`. Each step embeds all patients, whatever its batch."""
    del batches
    recipe = importlib.import_module(f"behrt_jax.recipes.{settings['tier']}").get_config()
    recipe.data.row_length = settings["row_length"]
    data, size = DataConfig(**recipe.data), recipe.evaluation.batch_size
    model = BEHRTForPretraining(BEHRTConfig(**{**recipe.model, "vocab_size": settings["vocabulary"]}), ("mlm",))
    params = workdir.initialize(model, jax.random.key(recipe.seed))
    with np.load(settings["patients"], allow_pickle=False) as arrays:
        patients = Patients(**arrays)

    def step(number: int):
        return embed(data, model, params, patients, size)["mean"].sum(), 0

    def read(number: int) -> np.ndarray:
        rows = data_batches.evaluation_batches(patients, data.row_length, size, data.use_sep)
        return np.concatenate([row["codes"][row["patient_ids"] != 0] for row in rows])

    return {"step": step, "read": read, "measure": lambda: {"parameters": count_parameters(params)}}
