"""The command that generates patients: stopped by force in two processes, resumed, and trained on."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from behrt_jax.sources.synthea_population import write_synthea
from tests.experiments.conftest import TINY

pytestmark = pytest.mark.current_only
ROOT = Path(__file__).parents[2]
PATIENTS, SEED = 34, 7


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"experiments.{name}", *arguments]


def run(name: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(name, *arguments), cwd=ROOT, capture_output=True, text=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow  # a patient takes about 3 s
def test_a_killed_command_resumes_to_the_same_bytes_and_training_reads_them(tmp_path):
    pytest.importorskip("synthea")
    folder, whole = tmp_path / "meds", tmp_path / "whole"
    given = [f"--patients={PATIENTS}", f"--output={folder}", f"--seed={SEED}", "--workers=2"]
    process = subprocess.Popen(command("synthea", *given), cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(folder.rglob("*.parquet")):
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not (folder / "data").exists() and list(folder.rglob("*.parquet"))
    done = run("synthea", *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{PATIENTS} patients, ") and f"{PATIENTS}/{PATIENTS}" in done.stderr
    write_synthea(whole, PATIENTS, SEED)
    assert contents(folder) == contents(whole)
    config = {**TINY, "data.path": folder, "data.prepared_dir": tmp_path / "prepared", "train.num_steps": 4}
    config["train.evaluate_every"] = 2
    settings = [f"--config.{key}={value}" for key, value in config.items()]
    done = run("pretrain", "--config=configs/small.py", f"--workdir={tmp_path / 'run'}", "--nobaselines", *settings)
    assert done.returncode == 0, done.stderr


def test_a_wrong_number_of_patients_is_one_line(workplace):
    folder = workplace.folder / "generated"
    done = workplace.run(["--patients=0", f"--output={folder}"], "experiments.synthea")
    assert done.returncode == 2 and not done.stdout and not folder.exists()
    assert done.stderr.count("\n") == 1 and "--patients=0" in done.stderr
