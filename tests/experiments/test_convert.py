"""The command that converts tables, and training on what it writes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.sources.tiny import write_csv

pytest.importorskip("MEDS_extract")
pytestmark = pytest.mark.current_only
ROOT = Path(__file__).parents[2]
TINY = ("embedding_dim=8", "hidden_dim=16", "num_layers=1", "num_heads=2", "feedforward_dim=16")


def run(command: str, *arguments: str) -> subprocess.CompletedProcess:
    full = [sys.executable, "-m", f"experiments.{command}", *arguments]
    return subprocess.run(full, cwd=ROOT, capture_output=True, text=True)


def write_patients(folder: Path, number: int = 40) -> Path:
    """Writes Synthea's tables of patients with a wellness visit each year, and a condition by the year."""
    patients, encounters, conditions = ["Id,BIRTHDATE,GENDER"], ["Id,START,PATIENT,ENCOUNTERCLASS"], []
    for patient in range(number):
        patients.append(f"p{patient},{1950 + patient}-02-03,{'FM'[patient % 2]}")
        for year in range(2000, 2010):
            encounters.append(f"p{patient}-{year},{year}-03-04T05:06:07Z,p{patient},wellness")
            conditions.append(f"{year}-03-04,p{patient},p{patient}-{year},{(patient + year) % 5},Condition")
    conditions = ["START,PATIENT,ENCOUNTER,CODE,DESCRIPTION", *conditions]
    tables = {"patients": patients, "encounters": encounters, "conditions": conditions}
    return write_csv(folder, {name: "\n".join(lines) + "\n" for name, lines in tables.items()})


@pytest.mark.slow
def test_the_command_converts_and_training_reads_the_result(tmp_path):
    source, output = write_patients(tmp_path / "csv"), tmp_path / "meds"
    done = run("convert", "--source=synthea", f"--input={source}", f"--output={output}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == f"wrote {output}" and "880 events of 40 patients" in lines
    assert any(line.split() == ["conditions/condition", "400", "400"] for line in lines)
    config = {"data.path": output, "data.prepared_dir": tmp_path / "prepared", "data.min_patients": 2}
    config |= {"data.row_length": 64, "train.batch_size": 2, "train.num_steps": 4, "train.evaluate_every": 2}
    settings = [f"--config.{key}={value}" for key, value in config.items()]
    model = [f"--config.model.{part}" for part in TINY]
    done = run(
        "pretrain", "--config=configs/small.py", f"--workdir={tmp_path / 'run'}", "--nobaselines", *settings, *model
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_a_wrong_input_is_one_line(tmp_path, workplace):
    given = ["--source=synthea", f"--input={tmp_path / 'none'}", f"--output={tmp_path / 'meds'}"]
    done = workplace.run(given, "experiments.convert")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'none'}: no such directory; --input must name the folder of the source's tables"
    ]
