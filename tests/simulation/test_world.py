import dataclasses

import numpy as np
import pytest

from behrt_jax.simulation import world as worlds
from tests.data.handmade import assert_clear

WORLD = worlds.make_world(0)
ARRAYS = ("moves", "death", "leave", "visit", "emission")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("diseases", [1, 3])
def test_everything_is_a_probability(seed, diseases):
    world = worlds.make_world(seed, num_diseases=diseases)
    states, codes = 3**diseases, len(world.codes)
    shapes = ((diseases, 3, 3, 2, 110), (states, 2, 110), (1,), (states,), (states, codes))
    for name, shape in zip(ARRAYS, shapes, strict=True):
        found = getattr(world, name)
        assert found.shape == shape and (found >= 0).all() and (found <= 1).all()
    np.testing.assert_allclose(world.moves.sum(axis=2), 1.0, atol=1e-12)
    assert (world.emission[:, 0] == 1).all() and (world.emission[:, 1:] > 0).all() and (world.emission < 1)[:, 1:].all()
    assert len(set(world.codes)) == codes and world.codes[0].startswith("ENCOUNTER//SIM//")


def test_a_world_is_a_function_of_its_seed():
    again, other = worlds.make_world(0), worlds.make_world(1)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(WORLD, name), getattr(again, name))
    assert not np.allclose(WORLD.emission, other.emission)


def test_the_number_of_diseases_is_checked():
    with pytest.raises(ValueError) as error:
        worlds.make_world(0, num_diseases=7)
    assert_clear(error, "num_diseases: found 7; expected 1 to 6")


def test_late_stages_bring_visits_and_death_and_some_diseases_get_better():
    for disease in range(4):
        late = worlds.state_of(2 * np.eye(4, dtype=int)[disease][:, None])[0]
        assert (
            WORLD.visit[late] > WORLD.visit[0] + 0.1 and (WORLD.death[late, :, 50] > 1.5 * WORLD.death[0, :, 50]).all()
        )
        assert (WORLD.moves[disease, 2, 1] > 0).all() == (disease % 2 == 1)
    assert (WORLD.moves[:, 0, 1, :, 60] > WORLD.moves[:, 0, 1, :, 10]).all()
    assert not np.allclose(WORLD.moves[:, :, :, 0], WORLD.moves[:, :, :, 1])


def test_no_code_alone_tells_a_disease():
    """Some likely codes of one disease alone are also likely with another alone, and none is certain."""
    singles = WORLD.emission[3 ** np.arange(4)[::-1] * 2, 1:]
    assert (singles.max(axis=0) < 0.96).all()
    assert ((singles > 0.1).sum(axis=0) > 1).sum() >= 4


def test_states_count_in_base_three():
    stages = worlds.stages_of(3)
    np.testing.assert_array_equal(worlds.state_of(stages.T), np.arange(27))
    assert stages[1 * 9 + 0 * 3 + 2].tolist() == [1, 0, 2]


@pytest.mark.parametrize("sex", [0, 1])
def test_advance_is_the_product_of_the_diseases_matrices(sex):
    month = 12 * 50 + 3
    matrix = np.ones((1, 1))
    for moves in WORLD.moves[..., sex, 50]:
        matrix = np.kron(matrix, moves)
    at = np.full(4, sex), np.full(4, month)
    states = np.random.default_rng(0).random((81, 4))
    np.testing.assert_allclose(WORLD.advance(states, *at), matrix.T @ states, atol=1e-13)
    np.testing.assert_allclose(WORLD.advance(states, *at, backward=True), matrix @ states, atol=1e-13)


def test_columns_are_advanced_alone_to_the_bit():
    rng = np.random.default_rng(0)
    states, sex, month = rng.random((81, 37)), rng.integers(0, 2, 37), rng.integers(1, 1320, 37)
    together = WORLD.advance(states, sex, month)
    for column in (0, 5, 36):
        one = [column]
        np.testing.assert_array_equal(WORLD.advance(states[:, one], sex[one], month[one])[:, 0], together[:, column])


def test_priors_are_those_of_the_living():
    world = worlds.make_world(3, num_diseases=1)
    priors = worlds.state_priors(world)
    for sex in range(2):
        alive = np.array([1.0, 0, 0])
        for month in range(1, 801):
            alive = alive @ world.moves[0, :, :, sex, month // 12] * (1 - world.death[:, sex, month // 12])
        np.testing.assert_allclose(priors[:, sex, 800], alive / alive.sum(), atol=1e-12)


def test_save_and_load(tmp_path):
    worlds.save_world(tmp_path, WORLD)
    found = worlds.load_world(tmp_path)
    for field in dataclasses.fields(worlds.World):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(WORLD, field.name))
    assert isinstance(found.codes, tuple) and isinstance(found.codes[0], str)


def test_what_cannot_be_loaded(tmp_path):
    file = tmp_path / worlds.WORLD_FILE

    def message(*parts):
        with pytest.raises(ValueError) as error:
            worlds.load_world(tmp_path)
        assert_clear(error, file, *parts, "give a folder that experiments.simulate wrote")

    message("no such file; expected the probabilities")
    file.write_bytes(b"PK not a zip")
    message("not a readable .npz file")
    np.savez(file, codes=np.array([{"a": 1}], dtype=object))
    message("not a readable .npz file")  # it would have to be unpickled
    np.savez(file, **{name: value for name, value in vars(WORLD).items() if name not in ("death", "codes")})
    message("codes, death missing (found diseases, moves")
