"""The doctor finds what is wrong and says what to do; on a CPU all is well, under each set of versions."""

import jax
import numpy as np
import pytest

from behrt_jax.workflows import doctor

SOUND = {"jax": "0.10.2", "jaxlib": "0.10.2"}


def test_a_cpu_gives_the_losses_that_are_stored():
    losses, seconds = doctor.run_steps()
    np.testing.assert_allclose(losses, doctor.LOSSES, atol=2e-4)
    assert seconds > 0 and losses[-1] < losses[0]
    finding = doctor.check_step(lambda: (losses, seconds))
    assert not finding.cure and f"{losses[0]:.4f}" in finding.found


def test_wrong_losses_and_a_step_that_fails_are_said():
    assert "do not trust" in doctor.check_step(lambda: ([7.2, 6.9, 6.7], 0.1)).cure
    assert "do not trust" in doctor.check_step(lambda: ([float("nan")] * 3, 0.1)).cure

    def fail():
        raise RuntimeError("UNIMPLEMENTED:\nscatter")

    finding = doctor.check_step(fail)
    assert "JAX_PLATFORMS=cpu" in finding.cure and finding.found == "failed with RuntimeError: UNIMPLEMENTED: scatter"


@pytest.mark.parametrize(
    ("versions", "cure"),
    [
        (SOUND, ""),
        ({**SOUND, "jax-metal": "0.1.1"}, "requirements-metal.txt"),
        ({"jax": "0.5.0", "jaxlib": "0.5.0", "jax-metal": "0.1.1"}, ""),
        ({**SOUND, "jax-mps": "0.10.4"}, ""),
        ({**SOUND, "jax-mps": "0.11.0"}, "jax-mps<0.11"),
        ({"jax": "0.10.2", "jaxlib": "0.9.0"}, "of one version"),
    ],
)
def test_versions_that_do_not_go_together_are_named(versions, cure):
    found = doctor.check_versions(versions).cure
    assert cure in found and bool(cure) == bool(found)


def test_a_gpu_that_jax_does_not_use_is_named(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not doctor.check_devices().cure
    monkeypatch.delenv("JAX_PLATFORMS")
    assert jax.devices()[0].platform != "cpu" or "requirements-cuda.txt" in doctor.check_devices().cure


def test_settings_memory_and_disk(tmp_path, monkeypatch):
    assert not doctor.check_settings({"JAX_DEBUG_NANS": "False"}).cure
    assert "unset JAX_DEBUG_NANS" in doctor.check_settings({"JAX_DEBUG_NANS": "True"}).cure
    assert doctor.check_memory(1.0).cure and not doctor.check_memory(16.0).cure and doctor.count_memory() > 0
    assert not doctor.check_disk(tmp_path).cure
    monkeypatch.setattr(doctor, "LEAST_DISK", 1e9)
    assert "free some space" in doctor.check_disk(tmp_path).cure


def test_each_finding_is_a_line_and_each_cure_another():
    lines = doctor.describe([doctor.Finding("disk", "9 GiB"), doctor.Finding("memory", "1 GiB", "add some")])
    assert [line.split()[0] for line in lines] == ["ok", "look", "->"] and lines[2].endswith("add some")
