import os
from pathlib import Path

import polars as pl
import pytest

from behrt_jax.data import dataset, events, files
from behrt_jax.data.prepare import prepare
from behrt_jax.labels.label_tables import read_label_table
from tests.data.handmade import START, SUBJECTS, assert_clear, history


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    return file


def test_every_parquet_file_is_found_in_order(tmp_path):
    names = ["b.parquet/part-0.parquet", "a/deep/1.parquet", "a.parquet", "B.PARQUET", "part[1] *?.parquet"]
    expected = sorted(touch(tmp_path / "in" / name) for name in names)
    found = files.find_parquet(tmp_path / "in")
    assert found == (expected, 0, 0)


def test_links_to_files_and_folders_are_followed_and_circles_end(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    touch(inside / "0.parquet")
    touch(outside / "x" / "1.parquet")
    touch(outside / "2.bin")
    (inside / "folder").symlink_to(outside)
    (inside / "2.parquet").symlink_to(outside / "2.bin")
    (outside / "x" / "up").symlink_to(inside)
    (inside / "again").symlink_to(inside)
    found = files.find_parquet(inside)
    assert found.files == [inside / "0.parquet", inside / "2.parquet", inside / "folder" / "x" / "1.parquet"]
    assert (found.hidden, found.other) == (0, 1)  # 2.bin


def test_hidden_and_other_files_are_left_out_and_counted(tmp_path):
    folder = tmp_path / ".cache" / "in"  # above the folder, hidden names do not matter
    good = touch(folder / "0.parquet")
    for name in (".0.parquet.crc", "._0.parquet", "_SUCCESS", "_temporary/0/9.parquet", ".git/x.parquet", "n.txt"):
        touch(folder / name)
    os.mkfifo(folder / "pipe.parquet")
    assert files.find_parquet(folder) == ([good], 5, 2)


def test_a_link_to_nothing_is_an_error(tmp_path):
    touch(tmp_path / "in" / "0.parquet")
    for name in ("1.parquet", "folder"):
        link = tmp_path / "in" / name
        link.symlink_to(tmp_path / "gone")
        with pytest.raises(ValueError) as error:
            files.find_parquet(tmp_path / "in")
        assert_clear(error, link, "points to nothing", "restore")
        link.unlink()


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    closed, listdir = touch(tmp_path / "in" / "closed" / "0.parquet").parent, os.listdir

    def refuse(folder):
        if Path(folder) == closed:
            raise PermissionError(13, "Permission denied", str(folder))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(ValueError) as error:
        files.find_parquet(tmp_path / "in")
    assert_clear(error, closed, "cannot list this folder (Permission denied)", "make it readable")


def test_data_in_links_and_folders_named_like_files(cohort, tmp_path):
    """The same patients, whichever way their shards lie in the folder."""
    expected = prepare(cohort.config())
    data = cohort.root / "data"
    (tmp_path / "elsewhere").mkdir()
    (data / "0.parquet").rename(tmp_path / "elsewhere" / "part-0.parquet")
    (data / "linked").symlink_to(tmp_path / "elsewhere")
    (data / "1.parquet").rename(data / "part-1")
    (data / "1.parquet").mkdir()
    (data / "part-1").rename(data / "1.parquet" / "part-1[a].parquet")
    touch(data / "1.parquet" / "_SUCCESS")
    touch(data / "readme.txt")
    found = prepare(cohort.config())
    assert found.report == {**expected.report, "hidden_files": 1, "other_files": 1}
    for split in events.SPLITS:
        ids = dataset.read(found.folder, split).subject_ids
        assert ids.tolist() == dataset.read(expected.folder, split).subject_ids.tolist()


def test_a_name_that_is_a_pattern_reads_that_file_alone(meds):
    meds.shard("a1", history(SUBJECTS[0]))
    shard = meds.shard("a[1]", history(SUBJECTS[1]))
    assert events.read_shard(shard)["subject_id"].unique().to_list() == [SUBJECTS[1]]


def test_labels_in_linked_folders_and_hidden_files(tmp_path, messages):
    def write(file: Path, subject: int) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = {"subject_id": [subject], "prediction_time": [START], "boolean_value": [subject % 2 == 0]}
        pl.DataFrame(rows).write_parquet(file)

    folder = tmp_path / "labels"
    write(folder / "0[1].parquet" / "part.parquet", 1)
    write(folder / "_temporary" / "0.parquet", 2)
    write(tmp_path / "out" / "1.parquet", 3)
    (folder / "linked").symlink_to(tmp_path / "out")
    found = read_label_table(folder)
    assert found.rows["subject_id"].to_list() == [1, 3]
    assert messages == [f"{folder}: 1 hidden or system files and 0 files that are not *.parquet were not read"]


def test_a_folder_of_other_files_alone(meds):
    touch(meds.root / "data" / "0.csv")
    touch(meds.root / "data" / "_0.parquet")
    with pytest.raises(ValueError, match="1 hidden or system files, 1 of other kinds"):
        events.find_shards(meds.root)
