import ast
import dataclasses
from pathlib import Path

import ml_collections
import pytest

from behrt_jax.data.config import DataConfig
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.objectives.classification import ClassificationConfig
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.training.loop import TrainConfig
from behrt_jax.training.optimizer import OptimizerConfig
from behrt_jax.training.recipe import UNKNOWN
from configs import classification, default, events, joint, labs, large, lstm, medium, reference, small, survival

ROOT = Path(__file__).parents[1]
RECIPES = {
    "default": default,
    "small": small,
    "medium": medium,
    "large": large,
    "events": events,
    "joint": joint,
    "labs": labs,
    "lstm": lstm,
    "reference": reference,
}
FINE_TUNING = {"classification": classification, "survival": survival}
SECTIONS = {
    "data": DataConfig,
    "model": BEHRTConfig,
    "objective": ObjectiveConfig,
    "optimizer": OptimizerConfig,
    "train": TrainConfig,
}


def sources(*folders):
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def reads(file: Path) -> set[str]:
    """The name of every attribute that a file reads."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("name", [*RECIPES, *FINE_TUNING])
def test_recipes_are_locked_in_every_section(name):
    config = (RECIPES | FINE_TUNING)[name].get_config()
    assert config.is_locked
    for section in config:
        if isinstance(config[section], ml_collections.ConfigDict):
            assert config[section].is_locked
            with pytest.raises((AttributeError, KeyError)):
                config[section].no_such_key = 1
            with pytest.raises((AttributeError, KeyError)):
                config[section].update(no_such_key=1)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_make_every_section(name):
    config = RECIPES[name].get_config()
    for section, kind in SECTIONS.items():
        given = dict(config[section])
        if section == "model":
            given.update(vocab_size=1000)
        kind(**given)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_keys_of_the_defaults(name):
    def keys(config):
        return {(key, inner) for key in config for inner in (config[key] if hasattr(config[key], "keys") else [""])}

    assert keys(RECIPES[name].get_config()) == keys(default.get_config())


@pytest.mark.parametrize(("name", "kind"), [("classification", ClassificationConfig), ("survival", SurvivalConfig)])
def test_recipes_of_fine_tuning_make_every_section(name, kind):
    config, other = (FINE_TUNING[which].get_config() for which in (name, ({*FINE_TUNING} - {name}).pop()))
    for section, of in {**SECTIONS, name: kind}.items():
        if section != "objective":
            given = {**config[section], **{"model": {"vocab_size": 1000}, **UNKNOWN}.get(section, {})}
            assert set(given) == {field.name for field in dataclasses.fields(of)}
            of(**given)
    assert {*config} - {name} == {*other} - {*FINE_TUNING}


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_has_the_fields_of_its_dataclass_and_no_other(section):
    fields = {field.name for field in dataclasses.fields(SECTIONS[section])}
    assert set(default.get_config()[section]) == fields


@pytest.mark.parametrize("recipe", [default, classification, survival])
def test_every_key_is_read_somewhere(recipe):
    config = recipe.get_config()
    library, commands = sources("behrt_jax"), sources("behrt_jax", "experiments")
    read = {file: reads(file) for file in commands}
    everywhere = set().union(*read.values())
    for section in config:
        assert ("outcome" if section in FINE_TUNING else section) in everywhere, section
        for key in config[section] if isinstance(config[section], ml_collections.ConfigDict) else ():
            # Commands choose patients to train on and hand the objective's targets to the data.
            wanted = library if section in SECTIONS and section not in ("objective", "train") else commands
            assert any(key in read[file] for file in wanted), f"{section}.{key} is never read"


def test_a_key_that_nothing_reads_would_be_found():
    assert not any("no_such_key" in reads(file) for file in sources("behrt_jax", "experiments"))


def test_every_recipe_is_tested_here():
    assert {file.stem for file in (ROOT / "configs").glob("*.py")} - {"__init__"} == set(RECIPES | FINE_TUNING)
