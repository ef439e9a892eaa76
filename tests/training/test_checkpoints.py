import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from behrt_jax.data import checksums
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.state import TrainState

OPTIMIZER = optax.adam(0.1)


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints", "loss")
    yield opened
    opened.close()


def state_at(step, width=64):
    """A state whose numbers tell its step."""
    rng = np.random.default_rng(step)
    params = {"params": {"dense": {"kernel": jnp.asarray(rng.normal(size=(width, 32)), jnp.float32)}}}
    params["params"]["scale"] = jnp.full((3,), float(step))
    grads = jax.tree.map(jnp.ones_like, params)
    _, opt_state = OPTIMIZER.update(grads, OPTIMIZER.init(params), params)
    return TrainState(jnp.asarray(step, jnp.int32), params, opt_state)


def save(checkpoints, losses):
    for step, loss in losses.items():
        checkpoints.save(state_at(step), None if loss is None else {"loss": loss})


def reopened(checkpoints):
    return Checkpoints(checkpoints.folder, checkpoints.metric)


def assert_identical(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def files_of(checkpoints, step):
    """The files of a step, largest first."""
    files = [file for file in (checkpoints.folder / str(step)).rglob("*") if file.is_file()]
    return sorted(files, key=lambda file: -file.stat().st_size)


def cut_short(checkpoints, step):
    largest = files_of(checkpoints, step)[0]
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])


def flip_a_bit(checkpoints, step):
    largest = files_of(checkpoints, step)[0]
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def remove_manifests(checkpoints, step):
    """Removes the file without which the arrays of the parameters cannot be found."""
    for file in files_of(checkpoints, step):
        if file.name == "manifest.ocdbt":
            file.unlink()


def remove_parameters(checkpoints, step):
    shutil.rmtree(checkpoints.folder / str(step) / "params")


@pytest.mark.usefixtures("no_messages")
def test_an_empty_folder_has_nothing_to_restore(checkpoints):
    assert checkpoints.steps() == []
    assert checkpoints.restore_newest(state_at(0)) is None
    assert checkpoints.restore_best(state_at(0).params) is None


@pytest.mark.usefixtures("no_messages")
def test_a_saved_state_comes_back_bit_identical(checkpoints):
    save(checkpoints, {5: 1.0})
    assert_identical(reopened(checkpoints).restore_newest(state_at(0)), state_at(5))


@pytest.mark.usefixtures("no_messages")
def test_shapes_are_enough_to_restore(checkpoints):
    save(checkpoints, {5: 1.0})
    shapes = jax.eval_shape(lambda: state_at(0))
    assert_identical(checkpoints.restore_newest(shapes), state_at(5))


def test_the_newest_two_and_the_best_are_kept(checkpoints):
    save(checkpoints, {1: 0.9, 2: 0.2, 3: 0.5, 4: 0.6, 5: None, 6: 0.8})
    assert checkpoints.steps() == [2, 5, 6]
    assert reopened(checkpoints).steps() == [2, 5, 6]


@pytest.mark.usefixtures("no_messages")
def test_best_is_the_lowest_loss_and_newest_the_last_step(checkpoints):
    save(checkpoints, {1: 0.9, 2: 0.2, 3: 0.5, 4: None})
    again = reopened(checkpoints)
    assert_identical(again.restore_best(state_at(0).params), state_at(2).params)
    assert_identical(again.restore_newest(state_at(0)), state_at(4))


@pytest.mark.parametrize("text", ['{"los', '{"lost": 0.2}', ""])
def test_damaged_metrics_are_named(checkpoints, text):
    save(checkpoints, {4: 0.5, 8: 0.4})
    (checkpoints.folder / "4" / "metrics" / "metrics").write_text(text)
    for read in (Checkpoints.steps, Checkpoints.best, lambda each: each.restore_best(state_at(0).params)):
        with pytest.raises(ValueError, match=r"checkpoints/4: metrics/metrics is not as it was written; restore"):
            read(reopened(checkpoints))
    shutil.rmtree(checkpoints.folder / "4")
    assert_identical(reopened(checkpoints).restore_best(state_at(0).params), state_at(8).params)


@pytest.mark.usefixtures("no_messages")
def test_best_without_any_evaluation_is_the_newest(checkpoints):
    save(checkpoints, {1: None, 2: None})
    assert_identical(checkpoints.restore_best(state_at(0).params), state_at(2).params)


@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, remove_manifests, remove_parameters])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(checkpoints, damage, messages):
    save(checkpoints, {4: 0.5, 8: 0.4})
    damage(checkpoints, 8)
    again = reopened(checkpoints)
    assert_identical(again.restore_newest(state_at(0)), state_at(4))
    (warning,) = messages
    assert "checkpoint 8" in warning and str(checkpoints.folder) in warning and "\n" not in warning
    # The run goes on from 4, and its own 8 takes the place of the damaged one.
    again.save(state_at(8), {"loss": 0.3})
    assert_identical(reopened(checkpoints).restore_newest(state_at(0)), state_at(8))


def test_an_error_of_orbax_is_taken_for_damage(checkpoints, monkeypatch, messages):
    save(checkpoints, {4: 0.5, 8: 0.4})
    again = reopened(checkpoints)
    restore = again._manager.restore

    def stumble(step, **kwargs):
        if step == 8:
            raise RuntimeError("checksum\ndiffers")
        return restore(step, **kwargs)

    monkeypatch.setattr(again._manager, "restore", stumble)
    assert_identical(again.restore_newest(state_at(0)), state_at(4))
    assert len(messages) == 1 and messages[0].endswith("(RuntimeError: checksum differs)")


@pytest.mark.usefixtures("no_messages")
@pytest.mark.parametrize("left", [None, "", '{"params/'])
def test_a_kill_before_the_list_of_files_was_written_does_not_matter(checkpoints, left):
    save(checkpoints, {4: 0.5, 8: 0.4})
    listing = checkpoints.folder / "8" / checksums.FILE
    listing.unlink() if left is None else listing.write_text(left)
    assert_identical(reopened(checkpoints).restore_newest(state_at(0)), state_at(8))


@pytest.mark.parametrize("damage", [cut_short, remove_parameters])
def test_a_damaged_best_gives_way_to_the_newest(checkpoints, damage, messages):
    save(checkpoints, {1: 0.1, 2: 0.5, 3: 0.4})
    damage(checkpoints, 1)
    assert_identical(reopened(checkpoints).restore_best(state_at(0).params), state_at(3).params)
    assert len(messages) == 1 and "checkpoint 1 " in messages[0]


def test_reading_for_evaluation_removes_nothing(checkpoints):
    save(checkpoints, {1: 0.5, 2: 0.4})
    cut_short(checkpoints, 2)
    reopened(checkpoints).restore_best(state_at(0).params)
    assert reopened(checkpoints).steps() == [1, 2]


def test_all_damaged_is_an_error_that_names_the_folder(checkpoints, messages):
    save(checkpoints, {4: 0.5, 8: 0.4})
    for step in (4, 8):
        cut_short(checkpoints, step)
    again = reopened(checkpoints)
    with pytest.raises(ValueError, match=r"none of the checkpoints \[8, 4\] can be read; train anew") as caught:
        again.restore_newest(state_at(0))
    assert str(checkpoints.folder) in str(caught.value) and len(messages) == 2
    assert again.steps() == [4, 8]


@pytest.mark.usefixtures("no_messages")
def test_what_a_kill_left_half_written_is_not_a_checkpoint(checkpoints):
    save(checkpoints, {4: 0.5, 8: 0.4})
    finished = checkpoints.folder / "8"
    finished.rename(checkpoints.folder / "8.orbax-checkpoint-tmp")
    again = reopened(checkpoints)
    assert again.steps() == [4]
    assert_identical(again.restore_newest(state_at(0)), state_at(4))
    again.save(state_at(8), {"loss": 0.3})
    assert again.steps() == [4, 8]


@pytest.mark.usefixtures("no_messages")
def test_another_model_is_named_by_its_parameter(checkpoints):
    save(checkpoints, {4: 0.5})
    with pytest.raises(ValueError, match=r"kernel.*has shape \(64, 32\), expected \(65, 32\).*another model config"):
        checkpoints.restore_newest(state_at(0, width=65))
