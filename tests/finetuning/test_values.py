"""Fine-tuning on an outcome that depends only on the value of a measurement."""

import datetime

import jax
import numpy as np
import polars as pl
import pytest

from behrt_jax.finetuning import labeled_histories, setup
from behrt_jax.training.loop import make_train_step
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.state import create_state
from configs import classification
from tests import tiny
from tests.data.handmade import START, MedsFolder

pytestmark = pytest.mark.usefixtures("quick_compilation")
COUNT, SPLITS = 200, ("train", "train", "train", "tuning", "held_out")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Patients whose two codes are the same for all, and labels of whether the first value is above its median."""
    folder = MedsFolder(tmp_path_factory.mktemp("outcome"))
    first = np.random.default_rng(0).normal(5.5, 0.8, COUNT)
    rows = [
        row
        for subject, value in enumerate(first)
        for row in [(subject, 0, "MEDS_BIRTH"), (subject, 400, "GLUCOSE", float(value)), (subject, 500, "DIAGNOSIS")]
    ]
    folder.shard("0", rows)
    folder.splits({subject: SPLITS[subject % 5] for subject in range(COUNT)})
    times = pl.Series([START + datetime.timedelta(days=600)] * COUNT, dtype=pl.Datetime("us"))
    file = folder.root / "labels.parquet"
    columns = {"subject_id": range(COUNT), "prediction_time": times, "boolean_value": first > 5.5}
    pl.DataFrame(columns).write_parquet(file)
    return folder, file


def task_of(labelled, values: str, rank: int = 0):
    folder, file = labelled
    config = classification.get_config()
    config.labels, config.layer_decay, config.lora.rank = str(file), 1.0, rank
    config.data.update(path=str(folder.root), prepared_dir=str(folder.prepared_dir), row_length=16)
    config.data.update(codes_exclude=("MEDS_BIRTH",), value_encoding="continuous")
    config.model.update({**tiny.SIZES, "value_encoding": values, "dropout": 0.0})
    return setup.setup(config)


def tuning_loss(task, steps: int) -> float:
    optimizer = make_optimizer(tiny.optimizer_config(learning_rate=2e-2), steps)
    state = create_state(task.initialize, optimizer, 0)
    step = make_train_step(task.objective, optimizer, 0)
    stream = labeled_histories.training_columns(task.recipe, task.splits["train"], 0)
    for _, batch in zip(range(steps), stream, strict=False):
        state, _ = step(state, batch)
    return setup.tuning_scorer(task)(jax.device_get(state.params))["loss"]


def test_a_fine_tuned_model_reads_values_and_one_without_them_cannot(labelled):
    with_values, without = (tuning_loss(task_of(labelled, values), 30) for values in ("film", "none"))
    assert with_values < 0.25 < 0.6 < without


@pytest.mark.slow
def test_low_rank_adaptation_of_a_model_with_values(labelled):
    assert np.isfinite(tuning_loss(task_of(labelled, "film", rank=2), 2))
