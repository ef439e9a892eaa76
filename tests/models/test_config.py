import jax
import jax.numpy as jnp
import pytest

from behrt_jax import BEHRT, BEHRTConfig, count_parameters
from configs import large, medium, small
from tests import tiny

PRESETS = {"small": 506_624, "medium": 2_351_360, "large": 13_193_728}
RECIPES = {"small": (small, 0.45e6, 0.60e6), "medium": (medium, 2e6, 3e6), "large": (large, 10e6, 15e6)}
SIZES = ("embedding_dim", "hidden_dim", "num_layers", "num_heads", "feedforward_dim")


def encoder_parameters(config: BEHRTConfig) -> int:
    ints, floats = jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2))
    shapes = jax.eval_shape(BEHRT(config).init, jax.random.key(0), ints, floats, ints, ints, ints, floats)
    return count_parameters(shapes)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_published_number_of_parameters(name):
    config = getattr(BEHRTConfig, name)(1000)
    assert encoder_parameters(config) == PRESETS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_preset_counts_follow_from_the_sizes(name):
    config = getattr(BEHRTConfig, name)(1000)
    e, d, f = config.embedding_dim, config.hidden_dim, config.feedforward_dim
    age_rows = 100 // 5 + 2  # the bins, that of ages from 100 on, and the age unknown
    tables = (1000 + age_rows + 512 + config.max_positions) * e
    block = (3 * d * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d) + 4 * d
    assert PRESETS[name] == tables + 2 * e + (e * d + d) + config.num_layers * block + 2 * d


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_have_the_sizes_of_their_tier(name):
    recipe, lowest, highest = RECIPES[name]
    config = recipe.get_config()
    with config.unlocked():
        config.model.vocab_size = 1000
    found, preset = BEHRTConfig(**config.model), getattr(BEHRTConfig, name)(1000)
    assert [getattr(found, key) for key in SIZES] == [getattr(preset, key) for key in SIZES]
    assert lowest <= encoder_parameters(found) <= highest


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"hidden_dim": 30, "num_heads": 4}, r"model.hidden_dim: 30 is not divisible by model.num_heads=4; .* 32"),
        ({"num_layers": 0}, "model.num_layers: found 0; expected 1 or more"),
        ({"num_heads": -1}, "model.num_heads: found -1"),
        ({"max_visits": 0}, "model.max_visits: found 0"),
        ({"max_positions": -1}, "model.max_positions: found -1; expected 0 or more"),
        ({"time_bins": -1}, "model.time_bins: found -1; expected 0 or more"),
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


def test_a_stray_key_is_refused():
    with pytest.raises(TypeError, match="num_layer"):
        tiny.config(num_layer=2)
