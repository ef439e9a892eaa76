"""Any change of a recorded file is found and named; nothing recorded is no damage."""

import json

import pytest

from behrt_jax.data import checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "inner" / "b.bin").write_bytes(bytes(range(256)))
    checksums.record(tmp_path)
    return tmp_path


def test_files_as_they_were_written_are_not_damaged(folder):
    assert checksums.find_damage(folder) is None
    (folder / "later.txt").write_text("what was not recorded does not count")
    assert checksums.find_damage(folder) is None


@pytest.mark.parametrize("place", [0, 100, 255])
def test_every_flipped_bit_is_found(folder, place):
    file = folder / "inner" / "b.bin"
    content = bytearray(file.read_bytes())
    content[place] ^= 4
    file.write_bytes(content)
    assert checksums.find_damage(folder) == "inner/b.bin is not as it was written"


def test_a_missing_file_is_found(folder):
    (folder / "a.json").unlink()
    assert checksums.find_damage(folder) == "a.json is missing"


@pytest.mark.parametrize("left", [None, "", '{"a.js'])
def test_without_a_readable_record_nothing_is_said(folder, left):
    listing = folder / checksums.FILE
    listing.unlink() if left is None else listing.write_text(left)
    assert checksums.find_damage(folder) is None


def test_records_of_sizes_are_read(folder):
    (folder / checksums.FILE).write_text(json.dumps({"a.json": 2, "inner/b.bin": 256}))
    assert checksums.find_damage(folder) is None
    (folder / "a.json").write_text("{ }")
    assert checksums.find_damage(folder) == "a.json has 3 bytes, expected 2"
