"""Small data sets and patients that tests write by hand."""

import collections
import datetime
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.data.config import DataConfig
from behrt_jax.data.dataset import MICROSECONDS, TOKEN_FIELDS, Patients

START = datetime.datetime(2000, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}


def table(rows: list[tuple], visit_column: str | None = None) -> pl.DataFrame:
    """Makes events of `(subject, days since 2000 or None, code[, value[, visit]])`."""
    schema = {**SCHEMA, **({visit_column: pl.Int64} if visit_column else {})}
    full = [(*row, *[None] * (len(schema) - len(row))) for row in rows]
    moments = [None if row[1] is None else START + datetime.timedelta(days=row[1]) for row in full]
    return pl.DataFrame(
        [(row[0], moment, *row[2:]) for row, moment in zip(full, moments, strict=True)], schema=schema, orient="row"
    )


class MedsFolder:
    """A MEDS data set in a temporary folder, and data configs for it."""

    def __init__(self, tmp_path: Path, name: str = "meds"):
        self.root, self.prepared_dir = tmp_path / name, tmp_path / "prepared"

    def shard(self, name: str, events: pl.DataFrame | list[tuple]) -> Path:
        file = self.root / "data" / f"{name}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        (events if isinstance(events, pl.DataFrame) else table(events)).write_parquet(file)
        return file

    def splits(self, splits: dict[int, str] | pl.DataFrame) -> Path:
        file = self.root / "metadata" / "subject_splits.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(splits, dict):
            splits = pl.DataFrame({"subject_id": list(splits), "split": list(splits.values())})
        splits.write_parquet(file)
        return file

    def config(self, **changes) -> DataConfig:
        settings = {
            "path": str(self.root),
            "prepared_dir": str(self.prepared_dir),
            "visits": "auto",
            "events_without_visit": "group_by_day",
            "visit_gap_hours": 24.0,
            "codes_include": ("*",),
            "codes_exclude": ("MEDS_BIRTH",),
            "unique_codes_in_visit": True,
            "min_patients": 2,
            "value_bins": 4,
            "row_length": 32,
            "use_sep": True,
        }
        return DataConfig(**{**settings, **changes})

    def left_behind(self) -> list[str]:
        """What lies in the folder of prepared data."""
        return sorted(path.name for path in self.prepared_dir.iterdir()) if self.prepared_dir.exists() else []


# Ten patients of two shards: 0-5 train, 6-7 tuning, 8-9 held out. Their ids begin with 7100 and the codes with SECRET,
# so that a test can tell whether a message repeats any.
SUBJECTS = tuple(71_000_000 + number for number in range(10))
SPLITS = {subject: "train tuning held_out".split()[max(0, i - 4) // 2] for i, subject in enumerate(SUBJECTS)}


def history(subject: int) -> list[tuple]:
    """A birth, a static code and two visits of the same codes for all."""
    return [
        (subject, None, "SECRET//SEX"),
        (subject, 0, "MEDS_BIRTH"),
        (subject, 400, "SECRET//A"),
        (subject, 400, "SECRET//B", float(subject % 10)),
        (subject, 500, "SECRET//A"),
    ]


def write_cohort(folder: MedsFolder) -> MedsFolder:
    """Writes the ten patients: two shards and the splits."""
    for shard, subjects in (("0", SUBJECTS[:5]), ("1", SUBJECTS[5:])):
        folder.shard(shard, [row for subject in subjects for row in history(subject)])
    folder.splits(SPLITS)
    return folder


def assert_clear(error: pytest.ExceptionInfo, *parts: object) -> None:
    """Checks that a message names each part, is one line, and repeats neither a subject nor a code nor a date."""
    message = str(error.value)
    for part in parts:
        assert str(part) in message
    without_paths = re.sub(r"/\S+", "", message)
    assert "\n" not in message
    assert not re.search(r"SECRET|7100\d{4}|200[0-9]-", without_paths)


def patients_of(*people: dict) -> Patients:
    """Makes patients by hand.

    Args:
      people: for each, `static` codes, `visits` as lists of `(code, minutes)`, and `id`, `birth` and
        `origin` where they matter. Minutes may have a fraction.
    """
    tokens, sizes = [], []
    for person in people:
        rows = [(code, -1, 0, 0) for code in person.get("static", ())]
        for number, visit in enumerate(person["visits"]):
            for code, minutes in visit:
                rows.append((code, number, int(minutes // 1), round(minutes % 1 * MICROSECONDS)))
        tokens += rows
        sizes.append(len(rows))
    columns = np.array(tokens, np.int32).reshape(-1, 4)
    return Patients(
        subject_ids=np.array([person.get("id", i + 1) for i, person in enumerate(people)], np.int64),
        has_birth=np.array([person.get("birth", True) for person in people], bool),
        origins=np.array([person.get("origin", 0) for person in people], np.int32),
        offsets=np.cumsum([0, *sizes]),
        **dict(zip(TOKEN_FIELDS, columns.T.copy(), strict=True)),
    )


def random_patients(seed: int, count: int, most_visits: int = 8, most_codes: int = 6, vocabulary: int = 60) -> Patients:
    """Makes patients with random visits; codes from 4 ([UNK]) on."""
    rng = np.random.default_rng(seed)
    people = []
    for number in range(count):
        minutes, visits = 0, []
        for _ in range(rng.integers(1, most_visits + 1)):
            minutes += int(rng.integers(1, 200_000))
            times = np.sort(minutes + rng.integers(0, 3, rng.integers(1, most_codes + 1)))
            visits.append([(int(rng.integers(4, vocabulary)), int(time)) for time in times])
            minutes = int(times[-1])
        static = rng.integers(5, vocabulary, rng.integers(0, 4)).tolist()
        origin = int(rng.integers(-50_000_000, 10_000_000))
        person = {"id": 10 + 3 * number, "static": static, "visits": visits, "birth": number % 5 != 4}
        people.append({**person, "origin": origin})
    return patients_of(*people)


def overlapping_patients(seed: int, count: int, vocabulary: int = 60) -> Patients:
    """Makes patients whose visits go on while others begin, some of them at the same time; seconds matter."""
    rng, people = np.random.default_rng(seed), []
    for number in range(count):
        starts = np.sort(rng.choice(np.arange(0, 40_000, 25), rng.integers(1, 9)) / 4)
        starts[1::3] = starts[0::3][: len(starts[1::3])]  # in pairs
        visits = []
        for start in np.sort(starts):
            lasts = rng.choice([0.0, 0.25, 3000.0]) * rng.random(rng.integers(0, 6)).round(1)
            visits.append(
                [(int(rng.integers(4, vocabulary)), float(time)) for time in np.sort([start, *(start + lasts)])]
            )
        static = rng.integers(5, vocabulary, rng.integers(0, 3)).tolist()
        people.append({"id": 10 + 3 * number, "static": static, "visits": visits, "birth": number % 5 != 4})
    return patients_of(*people)


def only(patients: Patients, keep: np.ndarray) -> Patients:
    """Keeps some patients, by a mask or by positions."""
    order = np.arange(len(patients))[keep]
    parts = [np.arange(patients.offsets[i], patients.offsets[i + 1]) for i in order]
    tokens = np.concatenate(parts)
    return Patients(
        patients.subject_ids[order],
        patients.has_birth[order],
        patients.origins[order],
        np.cumsum([0, *map(len, parts)]),
        *(getattr(patients, name)[tokens] for name in TOKEN_FIELDS),
    )


def visits_by_patient(patients) -> list[list[list[int]]]:
    """For each patient and visit, the indices of its tokens."""
    result = []
    for start, stop in zip(patients.offsets[:-1], patients.offsets[1:], strict=True):
        visits = collections.defaultdict(list)
        for token in range(start, stop):
            if patients.visits[token] >= 0:
                visits[patients.visits[token]].append(token)
        result.append([visits[number] for number in sorted(visits)])
    return result
