"""`model.dtype="auto"`: bfloat16 where the device multiplies it; a concrete dtype in all that is built and saved."""

import types

import pytest

from behrt_jax.benchmarks.devices import DEVICES
from behrt_jax.finetuning import setup
from behrt_jax.recipes import classification, small
from behrt_jax.training import fit, precision, pretraining
from behrt_jax.training.recipe import read_recipe


@pytest.mark.parametrize(
    ("platform", "capability", "dtype"),
    [
        ("cpu", None, "float32"),
        ("tpu", None, "bfloat16"),
        ("gpu", "7.5", "float32"),
        ("gpu", "8.0", "bfloat16"),
        ("gpu", "9.0", "bfloat16"),
        ("gpu", "10.0", "bfloat16"),
        ("gpu", "gfx90a", "float32"),
        ("gpu", None, "float32"),
        ("METAL", None, "float32"),
    ],
)
def test_bfloat16_is_for_devices_that_multiply_it(platform, capability, dtype):
    device = types.SimpleNamespace(platform=platform)
    if capability is not None:
        device.compute_capability = capability
    assert precision.fastest_dtype(device) == dtype


def test_auto_alone_is_replaced():
    config = small.get_config()
    plain = read_recipe(config.to_dict())
    config.model.dtype = "auto"
    given = config.to_dict()
    assert read_recipe(precision.resolve_dtype(given, "float32")) == plain  # such a run resumes one of float32
    assert precision.resolve_dtype(given, "bfloat16")["model"]["dtype"] == "bfloat16"
    assert given == config.to_dict()
    assert precision.resolve_dtype(small.get_config().to_dict(), "bfloat16")["model"]["dtype"] == "float32"
    with pytest.raises(ValueError, match=r"^model\.dtype: found auto; expected one of float32, bfloat16"):
        read_recipe(given)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("door", [pretraining, setup])
def test_setup_resolves_it(monkeypatch, door, dtype):
    config = (small if door is pretraining else classification).get_config()
    config.model.dtype = "auto"

    def stop(values):
        raise InterruptedError(values["model"]["dtype"])

    monkeypatch.setattr(precision, "fastest_dtype", lambda device: dtype)
    monkeypatch.setattr(door, "read_recipe", stop)
    with pytest.raises(InterruptedError, match=dtype):
        door.setup(config)
    assert config.model.dtype == "auto"


def test_the_dtype_is_recorded_and_planned():
    assert fit.describe_machine("bfloat16")["matrix products"] == "bfloat16"
    assert DEVICES["a40"].fastest_dtype == "bfloat16" and DEVICES["m1"].fastest_dtype == "float32"
