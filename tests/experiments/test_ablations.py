"""Ablations: every variant is a recipe that can be trained, and the table has means and ranges over seeds."""

import importlib

import pytest
from ml_collections import ConfigDict

from behrt_jax.models.config import BEHRTConfig
from behrt_jax.objectives.config import ObjectiveConfig
from experiments.studies import ablations
from tests.experiments.conftest import TINY

VARIANTS = [(group, name) for group, variants in ablations.GROUPS.items() for name in variants]


def recipe_of(group: str, name: str, seed: int = 2, num_steps: int = 7) -> ConfigDict:
    """The recipe that a variant's flags make, key by key."""
    run = ablations.make_run(ablations.Path("runs"), group, name, seed, num_steps, [])
    file = next(word.removeprefix("--config=") for word in run.arguments if word.startswith("--config="))
    config = importlib.import_module(file.removesuffix(".py").replace("/", ".")).get_config()
    keys = (word.removeprefix("--config.").split("=", 1) for word in run.arguments if word.startswith("--config."))
    for key, value in keys:
        section, _, last = key.rpartition(".")
        before = config[section][last] if section else config[last]
        kind = type(before)
        changed = {"True": True, "False": False}[value] if kind is bool else kind(value)
        config.update_from_flattened_dict({key: changed})
    return config


@pytest.mark.parametrize(("group", "name"), VARIANTS)
def test_every_variant_is_a_model_and_an_objective_of_the_small_tier(group, name):
    config = recipe_of(group, name)
    assert (config.seed, config.train.num_steps, config.train.evaluate_every) == (2, 7, 7)
    unchanged = "joint recipe" if group == "training" else "small recipe"
    base = recipe_of(group, unchanged)
    assert (config.to_json() == base.to_json()) == (name == unchanged)
    config.model.vocab_size = 1000
    BEHRTConfig(**config.model)
    ObjectiveConfig(**config.objective)


def test_each_variant_and_seed_has_a_workdir_of_its_own(tmp_path):
    runs = [
        ablations.make_run(tmp_path, group, name, seed, num_steps, [])
        for group, name in VARIANTS
        for seed in (0, 1)
        for num_steps in (5, 600)
    ]
    by_folder = {}
    for run in runs:
        by_folder.setdefault(run.workdir.name, set()).add(run)
    assert all(len(same) == 1 for same in by_folder.values()) and "small-no-sep-600-seed-1" in by_folder
    assert len(by_folder) == len(runs)


def test_the_table_has_means_and_ranges_over_seeds():
    def run(accuracy, loss):
        return {"mlm/accuracy": accuracy, "mlm/loss": loss, "next_visit/loss": 9.0, "parameters": 1234}

    results = {"small recipe": [run(0.5, 1.0), run(0.6, 2.0)], "no [SEP]": [run(0.25, 1.5), run(0.25, 1.5)]}
    lines = ablations.format_markdown(results, "model", 600).splitlines()
    assert lines[0] == "2 seeds, 600 steps: mean [lowest, highest]"
    assert lines[2] == "|  | parameters | masked-code accuracy | masked-code loss |"
    assert lines[4] == "| small recipe | 1,234 | 0.550 [0.500, 0.600] | 1.500 [1.000, 2.000] |"
    assert lines[5] == "| no [SEP] | 1,234 | 0.250 [0.250, 0.250] | 1.500 [1.500, 1.500] |"
    alone = [{"next_visit/loss": 9.0, "parameters": 5}]  # no masked codes
    assert "| next visits alone | 5 |  | 9.000 [9.000, 9.000] |" in ablations.format_markdown(
        {"next visits alone": alone}, "training", 600
    )


@pytest.mark.slow
def test_variants_are_trained_and_tabulated(workplace):
    group, variants = "training", ["joint recipe", "learning rate 0.008"]
    folder = workplace.folder / "ablations"
    keys = {key: value for key, value in TINY.items() if key not in ("train.num_steps", "train.evaluate_every")}
    keys |= {"data.path": workplace.data, "data.prepared_dir": workplace.folder / "prepared"}
    given = [f"--set={key}={value}" for key, value in keys.items() if key != "optimizer.learning_rate"]
    chosen = [*(f"--variants={name}" for name in variants), f"--group={group}", "--jobs=2"]
    steps = ["--seeds=1", "--num_steps=4", f"--workdir={folder}"]
    done = workplace.run([*given, *chosen, *steps], "experiments.studies.ablations")
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in (folder / f"{group}.md").read_text().splitlines()[4:]]
    assert [row[0].strip() for row in rows] == variants
    parameters, losses = ({row[place] for row in rows} for place in (1, 3))
    assert len(parameters) == 1 and len(losses) == len(variants)
