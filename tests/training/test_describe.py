from pathlib import Path

from behrt_jax.data.prepare import Prepared
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.training.describe import describe_unmatched
from behrt_jax.training.recipe import read_recipe
from configs import default


def test_patterns_of_a_recipe_that_match_nothing_are_said_but_not_defaults():
    config = default.get_config()
    codes = ("CONDITION//A", "X//B")
    report = {"unmatched_patterns": ["LAB//*", "VITAL*", "TYPO//*", "NONE"]}
    prepared = Prepared(Path("nowhere"), Vocabulary(codes, (1, 1), (1, 1), {}), report)
    assert describe_unmatched(read_recipe(config.to_dict()), prepared) == []

    config.data.codes_include = ("CONDITION//*", "NONE")
    config.data.codes_exclude = (*config.data.codes_exclude, "TYPO//*")
    config.objective.targets = (*config.objective.targets, "X//*", "DEATH")
    lines = ["data.codes_include: no code matches NONE", "data.codes_exclude: no code matches TYPO//*"]
    assert describe_unmatched(read_recipe(config.to_dict()), prepared) == lines  # masked codes have no targets
    config.objective.name = "joint"
    assert describe_unmatched(read_recipe(config.to_dict()), prepared) == [
        *lines,
        "objective.targets: no code matches DEATH",
    ]
