"""Histories at the end of each patient's record, also where visits overlap."""

import numpy as np

from behrt_jax.embeddings import snapshots
from behrt_jax.labels import follow_up
from tests.conftest import ROOT


def test_at_last_every_token_is_in_the_history(bundled_train):
    """In visits that overlap, the latest token may not be the last one: so it is for some of the bundled patients."""
    times, ends = bundled_train.times, bundled_train.offsets[1:]
    assert 0 < (times[ends - 1] < bundled_train.last_times).sum() < 100
    lives = follow_up.read_lives(str(ROOT / "data" / "synthea-1151"))
    snapshot, left_out = snapshots.take_snapshot(bundled_train, None, lives, row_length=256)
    assert not left_out
    np.testing.assert_array_equal(snapshot.histories.subject_ids, bundled_train.subject_ids)
    for name in ("codes", "visits", "minutes", "microseconds", "offsets"):
        np.testing.assert_array_equal(getattr(snapshot.histories, name), getattr(bundled_train, name), err_msg=name)
