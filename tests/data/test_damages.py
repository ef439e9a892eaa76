"""Damaged data sets end in a result in which each event is accounted for, or in one line; never in a traceback."""

import re

import numpy as np
import pytest

from behrt_jax.data import dataset, events
from behrt_jax.data.prepare import prepare
from behrt_jax.labels import tasks
from tests.data import damages
from tests.data.handmade import MedsFolder
from tests.data.test_prepare import accounted
from tests.data.test_visit_readers import TASK

NAMED = re.compile(r"\.parquet|\.PARQUET|/data\b|column '|data\.[a-z_]+|metadata/")


def choose_config(rng: np.random.Generator, folder: MedsFolder):
    return folder.config(
        visits=str(rng.choice(["auto"] * 4 + ["day", "gap", "visit_id", "visit_id", "hadm_id"])),
        events_without_visit=str(rng.choice(["group_by_day", "leave_out"])),
        min_patients=int(rng.choice([1, 2, 5])),
        value_bins=int(rng.choice([0, 4])),
        unique_codes_in_visit=bool(rng.random() < 0.5),
        codes_include=(("*",), ("SECRET//*",), ("SECRET//LAB [x]", "SECRET//?"))[int(rng.integers(3))],
    )


def check_message(error: ValueError) -> str:
    """Checks that an error is one line that names a place and repeats nothing of patients."""
    message = str(error)
    assert NAMED.search(message), message
    without_paths = re.sub(r"/\S+", "", message)
    assert not re.search(r"7100\d{4}|SECRET|(?<!\d)(1[89]|20)\d\d-\d\d", without_paths), message
    assert "\n" not in re.sub(r"found .*?\)", "", message, flags=re.DOTALL), message  # of names of columns alone
    return message


def outcome(seed: int, folder: MedsFolder) -> tuple[str, list[str]]:
    """Damages a data set and reads it; returns the error or "", and what was done to it."""
    rng = np.random.default_rng(seed)
    done = damages.write(rng, folder.root)
    config = choose_config(rng, folder)
    try:
        prepared = prepare(config)
    except ValueError as error:
        assert folder.left_behind() == []
        return check_message(error), done
    report = prepared.report
    rows, subjects = damages.contents(folder.root)
    assert accounted(report) == report["events"] == rows
    kept = sum(report[f"patients/{split}"] for split in events.SPLITS)
    assert kept + report["patients_without_codes"] + report["patients_in_other_splits"] == subjects
    for split in events.SPLITS:
        assert len(dataset.read(prepared.folder, split).codes) == report[f"tokens/{split}"]
    try:
        made = tasks.make_labels(TASK, events.find_shards(folder.root))
    except ValueError as error:  # of a visit column that the recipe does not read
        return check_message(error), done
    assert made.counts["patients"] == subjects
    assert made.labels.height + sum(made.dropped.values()) == made.counts["index dates"]
    return "", done


@pytest.mark.parametrize("seed", range(40))
def test_damaged_data(seed, meds):
    outcome(seed, meds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 280))
def test_more_damaged_data(seed, meds):
    outcome(seed, meds)
