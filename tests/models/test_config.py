import dataclasses
import re
from pathlib import Path

import jax
import pytest

import behrt_jax
from behrt_jax.models.behrt import BEHRT, count_parameters
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.training.workdir import initialize
from configs import large, medium, small
from tests import tiny

# Parameters at vocabulary 1,000 in the tiers small, medium and large: the table of docs/model.md.
COUNTS = {
    "BEHRT": (506_624, 2_351_360, 13_193_728),
    "BEHRTForMLM": (516_008, 2_385_512, 13_326_568),
    "BEHRTForNextVisitPrediction": (516_008, 2_385_512, 13_326_568),
    "BEHRTForSequenceClassification": (506_753, 2_351_617, 13_194_241),
    "BEHRTForSequenceClassification, attention pooling": (506_881, 2_351_873, 13_194_753),
}
TIERS = ("small", "medium", "large")
ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "model.md"
RECIPE_COUNTS = {"small": 503_424, "medium": 2_338_560, "large": 13_142_528}
RECIPES = {"small": (small, 0.45e6, 0.60e6), "medium": (medium, 2e6, 3e6), "large": (large, 10e6, 15e6)}
SIZES = ("embedding_dim", "hidden_dim", "num_layers", "num_heads", "feedforward_dim")
CHOICES = {
    "position_encoding": "learned, sinusoidal, none",
    "rotary": "none, positions, ages",
    "encoder": "transformer, lstm",
    "pooling": "cls, last, mean, max, attention",
    "dtype": "float32, bfloat16",
}


def parameters(config: BEHRTConfig, model: str = "BEHRT") -> int:
    module = getattr(behrt_jax, model)(config)
    return count_parameters(jax.eval_shape(lambda key: initialize(module, key), jax.random.key(0)))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", COUNTS)
def test_models_have_the_published_number_of_parameters(name, tier):
    model, _, pooling = name.removesuffix(" pooling").partition(", ")
    config = getattr(BEHRTConfig, tier)(1000, pooling=pooling or "mean")
    assert parameters(config, model) == COUNTS[name][TIERS.index(tier)]


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_the_first_and_the_largest_state_pool_without_parameters(pooling):
    config = BEHRTConfig.small(1000, pooling=pooling)
    assert parameters(config, "BEHRTForSequenceClassification") == COUNTS["BEHRTForSequenceClassification"][0]


def test_the_documented_table_is_that_of_the_tests():
    lines = iter(DOCUMENT.read_text().splitlines())
    head = next(line for line in lines if line.startswith("| model |"))
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["model", *TIERS]
    next(lines)  # the rule below the head
    found = {}
    for line in lines:
        if not line.startswith("|"):
            break
        name, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
        assert all(re.fullmatch(r"\d{1,3}(,\d{3})*", number) for number in numbers), line
        model = re.sub(r"\(.*\)|`", "", name).strip()
        found[model] = tuple(int(number.replace(",", "")) for number in numbers)
    assert found == COUNTS


def test_an_lstm_encoder_has_the_published_number_of_parameters():
    assert parameters(BEHRTConfig.small(1000, encoder="lstm", hidden_dim=256)) == 1_169_280


@pytest.mark.parametrize("tier", TIERS)
def test_preset_counts_follow_from_the_sizes(tier):
    config = getattr(BEHRTConfig, tier)(1000)
    e, d, f = config.embedding_dim, config.hidden_dim, config.feedforward_dim
    age_rows = 100 // 5 + 2  # the bins, that of ages from 100 on, and the age unknown
    tables = (1000 + age_rows + 512 + config.max_positions) * e
    block = (3 * d * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
    expected = tables + 2 * e + (e * d + d) + config.num_layers * block + 2 * d
    assert COUNTS["BEHRT"][TIERS.index(tier)] == expected


@pytest.mark.parametrize(
    ("overrides", "more"),
    [
        ({"time_bins": 53, "time_bin_days": 7.0}, 53 * 64),
        ({"position_encoding": "sinusoidal"}, 1 - 50 * 64),
        ({"position_encoding": "none"}, -50 * 64),
        ({"rotary": "ages", "visit_bias": True, "causal": True, "dtype": "bfloat16"}, 0),
        ({"max_visits": 100, "max_age": 80, "age_bin_size": 1.0}, (100 - 512 + 82 - 22) * 64),
    ],
)
def test_each_choice_adds_the_parameters_that_it_names(overrides, more):
    assert parameters(BEHRTConfig.small(1000, **overrides)) - COUNTS["BEHRT"][0] == more


@pytest.mark.parametrize("tier", RECIPES)
def test_recipes_have_the_sizes_of_their_tier(tier):
    recipe, lowest, highest = RECIPES[tier]
    config = recipe.get_config()
    with config.unlocked():
        config.model.vocab_size = 1000
    found, preset = BEHRTConfig(**config.model), getattr(BEHRTConfig, tier)(1000)
    assert [getattr(found, key) for key in SIZES] == [getattr(preset, key) for key in SIZES]
    assert lowest <= parameters(found) <= highest
    assert parameters(found) == RECIPE_COUNTS[tier]
    assert f"{parameters(found):,}" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("tier", TIERS)
def test_presets_are_the_reference_and_take_overrides(tier):
    preset = getattr(BEHRTConfig, tier)
    plain = preset(1000)
    assert all(getattr(plain, field.name) == field.default for field in dataclasses.fields(plain)[7:])
    overrides = {"hidden_dim": 64, "max_positions": 7, "causal": True, "pooling": "max", "dropout": 0.3}
    assert preset(1000, **overrides) == dataclasses.replace(plain, **overrides)
    with pytest.raises(ValueError, match="model.num_layers: found 0"):
        preset(1000, num_layers=0)


@pytest.mark.parametrize("key", CHOICES)
def test_a_wrong_choice_lists_the_choices(key):
    with pytest.raises(ValueError, match=f"^model.{key}: found other; expected one of {CHOICES[key]}$"):
        tiny.config(**{key: "other"})
    for choice in CHOICES[key].split(", "):
        assert getattr(tiny.config(**{key: choice}), key) == choice


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_dim": 30, "num_heads": 4}, r"model.hidden_dim: 30 is not divisible by model.num_heads=4; .* 32"),
        ({"hidden_dim": 30, "num_heads": 10}, "model.rotary: the width of a head, .*, is 3; expected an even one"),
        ({"embedding_dim": 7, "position_encoding": "sinusoidal"}, "model.embedding_dim: found 7; expected an even w"),
        ({"embedding_dim": 0}, "model.embedding_dim: found 0; expected 1 or more"),
        ({"hidden_dim": 0}, "model.hidden_dim: found 0; expected 1 or more"),
        ({"num_layers": 0}, "model.num_layers: found 0; expected 1 or more"),
        ({"num_heads": -1}, "model.num_heads: found -1"),
        ({"feedforward_dim": 0}, "model.feedforward_dim: found 0; expected 1 or more"),
        ({"max_visits": 0}, "model.max_visits: found 0"),
        ({"max_positions": 0}, "model.max_positions: found 0; expected 1 or more"),
        ({"max_positions": -1, "position_encoding": "none"}, "model.max_positions: found -1"),
        ({"time_bins": -1}, "model.time_bins: found -1; expected 0 or more"),
        ({"time_bin_days": -7.0}, "model.time_bin_days: found -7.0; expected 0 or more"),
        ({"dropout": 1.0}, "model.dropout: found 1.0; expected 0 <= dropout < 1"),
        ({"dropout": -0.1}, "model.dropout: found -0.1"),
        ({"age_bin_size": 0.0}, "model.age_bin_size: found 0.0 with max_age=100"),
        ({"age_bin_size": 101.0}, "model.age_bin_size: found 101.0"),
        ({"max_age": 0}, "model.age_bin_size: found 5.0 with max_age=0"),
    ],
)
def test_wrong_sizes_name_key_and_value(overrides, message):
    with pytest.raises(ValueError, match=message):
        tiny.config(**overrides)


def test_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match="model.vocab_size: found 0; expected 1 or more"):
        BEHRTConfig.small(0)


@pytest.mark.parametrize(
    "overrides",
    [{"max_positions": 0, "position_encoding": "none"}, {"max_positions": 0, "position_encoding": "sinusoidal"}],
)
def test_only_a_learned_table_needs_rows_for_positions(overrides):
    assert tiny.config(**overrides).max_positions == 0


def test_odd_widths_are_fine_without_what_needs_pairs():
    assert tiny.config(rotary="none", embedding_dim=7, hidden_dim=30, num_heads=10).hidden_dim == 30


def test_causal_models_and_lstms_do_not_see_the_future():
    for encoder, causal, expected in (
        ("transformer", False, True),
        ("lstm", False, False),
        ("transformer", True, False),
        ("lstm", True, False),
    ):
        assert tiny.config(encoder=encoder, causal=causal).sees_future is expected


def test_a_stray_key_is_refused():
    with pytest.raises(TypeError, match="num_layer"):
        tiny.config(num_layer=2)


def test_models_with_a_head_hold_the_encoder_as_one_part():
    config = BEHRTConfig.small(1000)
    alone = jax.eval_shape(lambda key: initialize(BEHRT(config), key), jax.random.key(0))["params"]
    for name in ("BEHRTForMLM", "BEHRTForNextVisitPrediction", "BEHRTForSequenceClassification"):
        model = getattr(behrt_jax, name)(config)
        params = jax.eval_shape(lambda key, model=model: initialize(model, key), jax.random.key(0))["params"]
        assert set(params) == {"behrt", "head"}
        assert jax.tree.map(lambda leaf: leaf.shape, params["behrt"]) == jax.tree.map(lambda leaf: leaf.shape, alone)
