"""Continuous values from a recipe to the loss; what does not go together is refused."""

import jax
import numpy as np
import pytest

from behrt_jax.data import dataset
from behrt_jax.training import pretraining, recipe
from behrt_jax.training.loop import make_train_step
from behrt_jax.training.optimizer import make_optimizer
from behrt_jax.training.state import create_state
from configs import default
from tests import tiny
from tests.data.handmade import MedsFolder
from tests.data.test_values import write_measurements

pytestmark = pytest.mark.usefixtures("quick_compilation")


def config_of(folder: MedsFolder | None = None, **changes):
    config = default.get_config()
    if folder is not None:
        config.data.update(path=str(folder.root), prepared_dir=str(folder.prepared_dir), codes_exclude=("MEDS_BIRTH",))
    config.data.update(value_encoding="continuous", row_length=32)
    config.model.update({**tiny.SIZES, "value_encoding": "film"})
    config.objective.update(name="joint", value_weight=0.5, mask_rate=0.5, targets=("DIAGNOSIS", "GLUCOSE"))
    for key, value in changes.items():
        section, name = key.split("__")
        config[section][name] = value
    return config


@pytest.mark.slow
def test_a_recipe_with_values_trains_on_them_and_logs_their_loss(tmp_path):
    folder = MedsFolder(tmp_path)
    write_measurements(folder)
    run = pretraining.setup(config_of(folder))
    assert run.train.values is not None and run.task.objective.weights["value/loss"] == 0.5
    optimizer = make_optimizer(tiny.optimizer_config(), 9)
    state = create_state(pretraining.initialize(run.task, run.train), optimizer, 0)
    before = jax.device_get(state.params)["params"]
    step = make_train_step(run.task.objective, optimizer, 0)
    stream = pretraining.training_columns(run.task, run.train, 0)
    for _ in range(3):
        batch = next(stream)
        assert batch["values"].dtype == np.float32 and (~np.isnan(batch["values"])).any()
        state, metrics = step(state, batch)
    assert metrics["value/loss"][1] > 0
    after = jax.device_get(state.params)["params"]
    for path in (("values", "output", "kernel"), ("behrt", "embedding", "values", "output", "kernel")):
        old, new = before, after
        for key in path:
            old, new = old[key], new[key]
        assert np.isfinite(new).all() and not np.array_equal(old, new), path
    found = pretraining.tuning_scorer(run.task, dataset.read(run.prepared.folder, "tuning"))(state.params)
    parts = {name: weight * found[name] for name, weight in run.task.tuning_objective.weights.items()}
    assert found["value/loss"] > 0 and found["loss"] == pytest.approx(sum(parts.values()), rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__value_encoding": "bins", "objective__value_weight": 0.0},
            "model.value_encoding: found 'film' with data.value_encoding='bins'",
        ),
        (
            {"data__value_encoding": "none", "model__value_encoding": "none"},
            "objective.value_weight: found 0.5 with data.value_encoding='none'",
        ),
        (
            {"data__value_encoding": "deciles"},
            "data.value_encoding: found 'deciles'; expected none, bins or continuous",
        ),
        ({"objective__value_weight": -1.0}, "objective.value_weight: found -1.0; expected 0 or more"),
    ],
)
def test_what_does_not_go_together_is_refused(changes, message):
    config = config_of(**changes).to_dict()
    config["model"]["vocab_size"] = 9
    with pytest.raises(ValueError, match=message):
        recipe.read_recipe(config)


@pytest.mark.parametrize(
    "changes", [{"data__codes_exclude": ("MEDS_BIRTH", "GLUCOSE")}, {"objective__mask_values": False}]
)
def test_train_without_a_value_to_mask_is_an_error_that_names_the_key(tmp_path, changes):
    folder = MedsFolder(tmp_path)
    write_measurements(folder)
    with pytest.raises(
        ValueError, match="objective.value_weight: no values of codes to mask in train of .*set it to 0"
    ):
        pretraining.setup(config_of(folder, objective__name="mlm", **changes))
