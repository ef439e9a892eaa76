import numpy as np
import pytest

from behrt_jax.models.encoder import attention_bias, visit_slopes
from tests import tiny


@pytest.fixture(autouse=True)
def _strict():
    with tiny.strict_jax():
        yield


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
    bias = np.asarray(attention_bias(patients, visits, (3.0, 0.5)))
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
    bias = np.asarray(attention_bias(patients, visits, (0.0, 0.0)))
    assert bias.shape == (1, 1, 4, 4)
    expected = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_array_equal(bias[0, 0] == 0, expected)
