"""What comes after a visit has no part in what is said of the next one, from the MEDS files on."""

from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import windows as data_windows
from behrt_jax.evaluation.loaded_run import Run, load_run
from behrt_jax.evaluation.next_visit import find_examples, predict

pytestmark = pytest.mark.usefixtures("quick_compilation")


def rewrite(source, target, change):
    """Writes a data set whose visits from the middle of each patient's on are changed.

    `change` takes the events, of which column `future` tells those that are of such visits.
    """
    found = pl.read_parquet(source / "data" / "0.parquet").with_row_index("row")
    starts = pl.col("time").min().over("subject_id", "visit_id")
    found = found.with_columns(start=pl.when(pl.col("visit_id").is_not_null()).then(starts))
    middle = pl.col("start").unique().quantile(0.5, "lower").over("subject_id")
    changed = change(found.with_columns(future=(pl.col("start") > middle).fill_null(False))).sort("row")
    for part in ("data", "metadata"):
        (target / part).mkdir(parents=True)
    changed.drop("row", "start", "future").write_parquet(target / "data" / "0.parquet")
    splits = "metadata/subject_splits.parquet"
    (target / splits).write_bytes((source / splits).read_bytes())
    return target


class Said(NamedTuple):
    """What is said of each visit, by patient and the visit's number: probabilities and days."""

    run: Run
    by_visit: dict[tuple[int, int], np.ndarray]
    codes: list[list[frozenset]]  # of each visit of each patient


def listen(folder, data=None) -> Said:
    run = load_run(folder, "held_out", data)
    split = find_examples(run, run.patients)
    predictions, days = predict(run, split, split)
    numbers = split.examples.visits - split.index.first_visit[split.examples.patients]
    keys = zip(run.patients.subject_ids[split.examples.patients].tolist(), numbers.tolist(), strict=True)
    said = np.concatenate([predictions.scored, days[:, None]], axis=1)
    first, (starts, stops) = split.index.first_visit, split.index.starts
    codes = [
        [frozenset(run.patients.codes[starts[visit] : stops[visit]].tolist()) for visit in range(*bounds)]
        for bounds in zip(first[:-1], first[1:], strict=True)
    ]
    return Said(run, dict(zip(keys, said, strict=True)), codes)


@pytest.fixture(params=["joint", "cut"])
def folder(request):
    return request.getfixturevalue(request.param)


def past_of(before: Said, after: Said) -> dict[int, int]:
    """Returns how many visits of each patient are the same in both, and checks that some are and some are not."""
    past = {}
    for subject, old, new in zip(before.run.patients.subject_ids.tolist(), before.codes, after.codes, strict=True):
        most = min(len(old), len(new))
        past[subject] = next((place for place in range(most) if old[place] != new[place]), most)
        assert 0 < past[subject] < len(old)
    return past


def test_another_future_changes_nothing_that_was_said_before_it(workplace, folder, tmp_path):
    before = listen(folder)
    names = [code for code in before.run.vocabulary.codes if code.split("//")[0] in ("CONDITION", "PROCEDURE")]
    swapped = dict(zip(names, np.roll(names, 1).tolist(), strict=True))  # as many codes a visit, and as different

    def swap(found):
        code = pl.col("code")
        return found.with_columns(pl.when("future").then(code.replace(swapped)).otherwise(code))

    after = listen(folder, str(rewrite(workplace.data, tmp_path / "swapped", swap)))
    past = past_of(before, after)
    shared = before.by_visit.keys() & after.by_visit.keys()
    # The first visit that differs is predicted from what is the same.
    early = [key for key in shared if key[1] <= past[key[0]]]
    late = [key for key in shared if key[1] > past[key[0]]]
    assert len(early) > 50 and len(late) > 50
    assert all(np.array_equal(before.by_visit[key], after.by_visit[key]) for key in early)
    assert sum(np.array_equal(before.by_visit[key], after.by_visit[key]) for key in late) < len(late) / 10


def test_without_a_future_the_same_is_said(workplace, folder, tmp_path):
    before = listen(folder)
    removed = rewrite(workplace.data, tmp_path / "removed", lambda found: found.filter(~pl.col("future")))
    after = listen(folder, str(removed))
    past = past_of(before, after)
    index = before.run.index(before.run.patients)
    windows, added = data_windows.covering_windows(index)
    firsts = added == index.first_visit[windows.patients]
    reach = (windows.stop - windows.start)[firsts]  # until then the whole past fits a row
    fits = dict(zip(before.run.patients.subject_ids[windows.patients[firsts]].tolist(), reach.tolist(), strict=True))
    early = [key for key in after.by_visit if key[1] < past[key[0]] and key[1] <= fits[key[0]]]
    assert len(early) > 20 and {key[1] for key in early} <= {key[1] for key in before.by_visit}
    for key in early:
        np.testing.assert_allclose(after.by_visit[key], before.by_visit[key], rtol=2e-5, atol=1e-7)
