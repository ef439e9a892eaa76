from pathlib import Path

import numpy as np
import pytest

from behrt_jax.data import dataset
from tests.data.handmade import only, random_patients

COLUMNS = ("codes", "visits", "minutes", "microseconds")


def examples(patients: dataset.Patients, order=None):
    for i in range(len(patients)) if order is None else order:
        inside = slice(patients.offsets[i], patients.offsets[i + 1])
        tokens = np.stack([getattr(patients, name)[inside] for name in COLUMNS], axis=1)
        subject = int(patients.subject_ids[i])
        known = {"has_birth": bool(patients.has_birth[i]), "origin": int(patients.origins[i])}
        yield subject, {"subject_id": subject, **known, "tokens": tokens}


def assert_same(one: dataset.Patients, other: dataset.Patients) -> None:
    for name in ("subject_ids", "has_birth", "origins", "offsets", *COLUMNS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    train = random_patients(0, 40)
    order = np.random.default_rng(0).permutation(len(train))
    dataset.write(folder, {"train": examples(train, order), "tuning": examples(random_patients(1, 3))})
    return folder


def test_round_trip_by_ascending_subject(written):
    found = dataset.read(written, "train")
    assert_same(found, random_patients(0, 40))
    assert found.subject_ids.dtype == np.int64 and found.has_birth.dtype == bool
    assert found.origins.dtype == np.int32 and len(set(found.origins.tolist())) == 40
    assert {getattr(found, name).dtype for name in COLUMNS} == {np.dtype(np.int32)}
    assert len(dataset.read(written, "tuning")) == 3


def test_writes_array_record_and_nothing_else(written):
    names = sorted(path.name for path in written.rglob("*") if path.is_file())
    assert [name for name in names if "array_record" in name] == [
        "patient_tokens-train.array_record-00000-of-00001",
        "patient_tokens-tuning.array_record-00000-of-00001",
    ]
    assert len(names) == 4 and [path.name for path in written.iterdir()] == ["patient_tokens"]


def test_large_numbers_survive(tmp_path):
    tokens = np.array([[5, 0, 2**31 - 1, 59_999_999]], np.int32)
    big = 2**62 + 1
    example = {"subject_id": big, "has_birth": True, "origin": -(2**31), "tokens": tokens}
    dataset.write(tmp_path, {"train": iter([(big, example)])})
    found = dataset.read(tmp_path, "train")
    assert found.subject_ids.tolist() == [big] and found.minutes.tolist() == [2**31 - 1]
    assert found.times.tolist() == [2**31 * dataset.MICROSECONDS - 1]
    assert found.origins.tolist() == [-(2**31)]


def test_writing_says_nothing(tmp_path, capfd):
    dataset.write(tmp_path, {"train": examples(random_patients(0, 4))})
    assert capfd.readouterr() == ("", "")


def test_an_absent_split(written, tmp_path):
    with pytest.raises(ValueError) as error:
        dataset.read(written, "held_out")
    assert f"{written}: split 'held_out' is not in the prepared data (found train, tuning)" in str(error.value)
    with pytest.raises(ValueError, match="split 'train' is not in the prepared data .found none."):
        dataset.read(tmp_path, "train")


@pytest.mark.parametrize("kept", [None, 0, 1000, 65536])
def test_a_damaged_file(tmp_path, kept):
    dataset.write(tmp_path, {"train": examples(random_patients(0, 400))})
    (file,) = tmp_path.rglob("*array_record-0*")
    content = file.read_bytes()
    assert len(content) > 65536
    if kept is None:
        file.unlink()
    else:
        file.write_bytes(content[:kept])
    with pytest.raises(ValueError) as error:
        dataset.read(tmp_path, "train")
    assert f"{tmp_path}: split 'train' of the prepared data is damaged" in str(error.value)
    assert "remove the folder to have the data prepared again" in str(error.value)


def test_a_full_disk_is_an_os_error(tmp_path, monkeypatch):
    def full(self):
        raise RuntimeError("write() failed: No space left on device; writing somewhere")

    monkeypatch.setattr(dataset.PatientTokens, "download_and_prepare", full)
    with pytest.raises(OSError, match="No space left on device"):
        dataset.write(tmp_path, {"train": examples(random_patients(0, 4))})


def test_a_sample_is_some_whole_patients_whoever_else_is_there():
    patients = random_patients(2, 60)
    found = dataset.sample(patients, 20)
    assert len(found) == 20 and (np.diff(found.subject_ids) > 0).all()
    assert_same(found, only(patients, np.isin(patients.subject_ids, found.subject_ids)))
    fewer = only(patients, np.isin(patients.subject_ids, [*found.subject_ids, *patients.subject_ids[::3]]))
    assert_same(dataset.sample(fewer, 20), found)
    assert_same(dataset.sample(patients, 60), patients)
    assert found.subject_ids.tolist() != patients.subject_ids[:20].tolist()
