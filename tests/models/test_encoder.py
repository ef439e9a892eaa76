import numpy as np
import pytest

from behrt_jax.models.encoder import Tokens, attention_bias, make_rotary, visit_slopes, visit_slots

pytestmark = pytest.mark.usefixtures("strict_jax")


def bias_of(patients, visits, slopes, causal=False):
    tokens = Tokens(patients, visits, visits, None)
    return np.asarray(attention_bias(tokens, tokens, slopes, causal))


def test_slopes_fall_in_even_ratios_to_zero():
    assert visit_slopes(1) == (0.0,)
    assert visit_slopes(2) == (4.0, 0.0)
    assert visit_slopes(4) == (4.0, 1.0, 0.25, 0.0)
    eight = visit_slopes(8)
    assert eight[-1] == 0 and eight[:3] == (4.0, 2.0, 1.0)
    np.testing.assert_allclose(np.divide(eight[1:7], eight[:6]), 0.5)


def test_bias_by_hand():
    """One row: patient 1 with visits 0, 0, 2, patient 2 with visit 5, padding."""
    patients, visits = np.array([[1, 1, 1, 2, 0]]), np.array([[0, 0, 2, 5, 0]])
    bias = bias_of(patients, visits, (3.0, 0.5))
    assert bias.shape == (1, 2, 5, 5)
    distance = np.array([[0, 0, 2], [0, 0, 2], [2, 2, 0]])
    np.testing.assert_array_equal(bias[0, 0, :3, :3], -3.0 * distance)
    np.testing.assert_array_equal(bias[0, 1, :3, :3], -0.5 * distance)
    assert bias[0, 0, 3, 3] == 0
    allowed = np.zeros((5, 5), bool)
    allowed[:3, :3] = allowed[3, 3] = True
    assert (bias[0, :, ~allowed] <= -1e29).all()


def test_without_slopes_one_bias_serves_all_heads():
    patients, visits = np.array([[1, 1, 2, 0]]), np.array([[0, 9, 0, 0]])
    bias = bias_of(patients, visits, (0.0, 0.0))
    assert bias.shape == (1, 1, 4, 4)
    expected = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(bias[0, 0] == 0, expected)


def test_causal_bias_by_hand():
    """Patient 1 with visits 0, 0, 2, then 1 of patient 2 and padding: a visit sees itself whole, and the past."""
    patients, visits = np.array([[1, 1, 1, 2, 2, 0]]), np.array([[0, 0, 2, 1, 3, 0]])
    expected = np.array(
        [
            [1, 1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0, 0],
            [1, 1, 1, 0, 0, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 0, 1, 1, 0],
            [0, 0, 0, 0, 0, 0],
        ],
        bool,
    )
    plain = bias_of(patients, visits, (0.0, 0.0), causal=True)
    assert plain.shape == (1, 1, 6, 6)
    np.testing.assert_array_equal(plain[0, 0], np.where(expected, 0.0, np.float32(-1e30)))
    sloped = bias_of(patients, visits, (3.0, 0.5), causal=True)
    assert sloped.shape == (1, 2, 6, 6) and sloped.dtype == np.float32
    np.testing.assert_array_equal(sloped[0, :, 2, :3], [[-6, -6, 0], [-1, -1, 0]])
    np.testing.assert_array_equal(sloped[0, :, 4, 3:5], [[-6, 0], [-1, 0]])
    assert (sloped[0, :, ~expected] == np.float32(-1e30)).all()


@pytest.mark.parametrize("causal", [False, True])
def test_padding_sees_nothing_and_is_seen_by_none(causal):
    patients, visits = np.array([[0, 1, 0], [0, 0, 0]]), np.zeros((2, 3), int)
    for slopes in ((0.0,), (4.0, 0.0)):
        seen = bias_of(patients, visits, slopes, causal) > -1e29
        assert seen[0, :, 1, 1].all() and seen.sum() == len(seen[0])


def test_slots_by_hand():
    """Patient 1 with visits 0, 0, 2, patient 2 with visits 2, 3, 3, padding: a visit's slot is its first place."""
    patients = np.array([[1, 1, 1, 2, 2, 2, 0, 0], [0, 3, 3, 3, 0, 1, 0, 0]])
    visits = np.array([[0, 0, 2, 2, 3, 3, 0, 0], [0, 0, 1, 1, 1, 1, 0, 5]])
    starts, slots = (np.asarray(part) for part in visit_slots(patients, visits))
    np.testing.assert_array_equal(starts, [[1, 0, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 0, 1, 0, 0]])
    np.testing.assert_array_equal(slots[patients != 0], [0, 0, 2, 3, 4, 4, 1, 2, 2, 5])
    assert starts.dtype == bool and (slots >= 0).all() and (slots < 8).all()


def test_rotated_queries_and_keys_meet_by_their_distance_alone():
    rng = np.random.default_rng(0)
    query, key = (rng.standard_normal((1, 1, 1, 8)).astype(np.float32) for _ in range(2))

    def score(first, second):
        at = [make_rotary(np.array([[place]], np.float32), 8) for place in (first, second)]
        return (np.asarray(at[0].rotate(query)) * np.asarray(at[1].rotate(key))).sum()

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert score(5, 5) == pytest.approx((query * key).sum(), abs=1e-5)
    assert abs(score(7, 3) - score(3, 7)) > 0.1 and abs(score(7, 3) - score(8, 3)) > 0.1


def test_rotation_turns_each_pair_by_its_own_frequency():
    rotary = make_rotary(np.array([[0, 1, 9]]), 4)
    cosines, sines = (np.asarray(part) for part in rotary)
    assert cosines.shape == sines.shape == (1, 1, 3, 4)
    angles = np.array([[0, 0], [1, 0.1], [9, 0.9]])
    np.testing.assert_allclose(cosines[0, 0], np.cos(np.hstack([angles, angles])), atol=1e-6)
    np.testing.assert_allclose(sines[0, 0], np.sin(np.hstack([-angles, angles])), atol=1e-6)
    x = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    turned = np.asarray(rotary.rotate(x))[0, 0]
    back = rotary.inverse().rotate(rotary.rotate(x))
    np.testing.assert_allclose(back, x, atol=1e-5)
    np.testing.assert_array_equal(turned[0], x[0, 0, 0])
    one, two = x[0, 0, 2, :2] * np.cos(angles[2]), x[0, 0, 2, 2:] * np.sin(angles[2])
    np.testing.assert_allclose(turned[2, :2], one - two, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(x[0, 0], axis=-1), rtol=1e-5)


def test_the_bias_of_some_tokens_is_their_rows_of_the_whole():
    rng = np.random.default_rng(1)
    patients, visits = np.array([[1, 1, 1, 2, 2, 0]] * 2), rng.integers(0, 4, (2, 6))
    tokens = Tokens(patients, visits, rng.integers(0, 3, (2, 6)), make_rotary(rng.random((2, 6), np.float32), 4))
    places = np.array([[4, 0, 0], [2, 3, 5]])
    whole, some = (np.asarray(attention_bias(each, tokens, (2.0, 0.0), True)) for each in (tokens, tokens.at(places)))
    np.testing.assert_array_equal(some, np.take_along_axis(whole, places[:, None, :, None], axis=2))
    for part, chosen in zip(tokens.rotary, tokens.at(places).rotary, strict=True):
        np.testing.assert_array_equal(chosen, np.take_along_axis(np.asarray(part), places[:, None, :, None], axis=2))
