"""Continuous values: scales per code and unit fitted on train, carried to the batch, and nothing else changed."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import batches, dataset, event_targets, histories, values, vocabulary, windows
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import Vocabulary
from tests.data.handmade import MedsFolder, random_patients, table

COUNT = 60


def write_measurements(folder: MedsFolder) -> dict[int, list[float]]:
    """Two visits of glucose in mmol/L, and in mg/dL for every third subject; the last has an outlier.

    A code is constant, one rare, and one has no number.
    """
    rng, rows, units, mmol = np.random.default_rng(0), [], [], {}
    for subject in range(COUNT):
        in_mg = subject % 3 == 0
        mmol[subject] = [float(value) for value in rng.normal(5.5, 0.8, 2)]
        if subject == COUNT - 1:
            mmol[subject][1] = 1e6
        own = [(subject, 0, "MEDS_BIRTH"), (subject, 400, "DIAGNOSIS")]
        for day, value in zip((400, 500), mmol[subject], strict=True):
            own.append((subject, day, "GLUCOSE", value * 18 if in_mg else value))
        own += [(subject, 600, "CONSTANT", 7.0), (subject, 600, "GLUCOSE")]
        own += [(subject, 700, "RARE", float(subject))] if subject < 3 else []
        rows += own
        units += [" mg/dL" if row[2] == "GLUCOSE" and in_mg else "mmol/L" for row in own]
    folder.shard("0", table(rows).with_columns(unit=pl.Series(units)))
    folder.splits({subject: ("train", "train", "train", "tuning", "held_out")[subject % 5] for subject in range(COUNT)})
    return mmol


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = MedsFolder(tmp_path_factory.mktemp("values"))
    mmol = write_measurements(folder)
    config = folder.config(value_encoding="continuous", min_patients=5)
    return config, mmol, prepare(config)


def values_of(prepared, split: str) -> dict[int, list[tuple[str, float]]]:
    """The tokens of each subject with their values, in order."""
    patients, tokens = dataset.read(prepared.folder, split), prepared.vocabulary.tokens
    assert patients.values is not None and patients.values.dtype == np.float32
    pairs = list(zip((tokens[code] for code in patients.codes), patients.values.tolist(), strict=True))
    bounds = zip(patients.subject_ids, patients.offsets[:-1], patients.offsets[1:], strict=True)
    return {int(subject): pairs[start:stop] for subject, start, stop in bounds}


def test_a_unit_has_the_median_and_the_robust_deviation_of_its_train_patients(measured):
    _, mmol, prepared = measured
    scales = prepared.vocabulary.value_scales
    assert scales.keys() == {"GLUCOSE"} and scales["GLUCOSE"].keys() == {"mg/dL", "mmol/L"}
    for unit, factor, parts in (("mg/dL", 18, (0,)), ("mmol/L", 1, (1, 2))):
        found = [mmol[subject] for subject in mmol if subject % 5 < 3 and subject % 3 in parts]
        own = np.float32(np.ravel(found)) * factor
        quarters = np.percentile(own, [25, 50, 75])
        expected = (quarters[1], (quarters[2] - quarters[0]) / 1.349)
        np.testing.assert_allclose(scales["GLUCOSE"][unit], (*expected, len(found)), rtol=1e-5)


def test_values_of_every_split_are_scaled_by_those_of_train_and_clipped(measured):
    _, mmol, prepared = measured
    scales, seen = prepared.vocabulary.value_scales["GLUCOSE"], 0
    for split in ("train", "tuning", "held_out"):
        for subject, tokens in values_of(prepared, split).items():
            unit, factor = ("mg/dL", 18) if subject % 3 == 0 else ("mmol/L", 1)
            median, deviation, _ = scales[unit]
            numbers = [value for token, value in tokens if token == "GLUCOSE"]
            expected = [np.clip((value * factor - median) / deviation, -10, 10) for value in mmol[subject]]
            np.testing.assert_allclose(numbers, [*expected, np.nan], atol=1e-4)
            assert all(np.isnan(value) for token, value in tokens if token != "GLUCOSE")
            seen += 1
    assert seen == COUNT and numbers[1] == values.LIMIT
    assert {"GLUCOSE", "CONSTANT", "DIAGNOSIS"} == set(prepared.vocabulary.codes)  # a token whatever the value
    report = prepared.report
    assert (report["values"], report["values_clipped"], report["values_left_out"]) == (2 * COUNT, 1, COUNT + 3)


def test_a_scale_survives_the_file_and_is_part_of_the_fingerprint(measured, tmp_path):
    vocab = measured[2].vocabulary
    vocab.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocab
    assert dataclasses.replace(vocab, value_scales={}).fingerprint != vocab.fingerprint
    text = (tmp_path / "vocabulary.json").read_text()
    (tmp_path / "vocabulary.json").write_text(text.replace('"mg/dL"', '"g/L"'))
    with pytest.raises(ValueError, match="changed since it was written"):
        Vocabulary.load(tmp_path / "vocabulary.json")


def test_rounded_scales_are_close_and_need_ten_patients(measured):
    config, _, prepared = measured
    rounded = prepare(dataclasses.replace(config, value_digits=2)).vocabulary.value_scales["GLUCOSE"]
    for unit, exact in prepared.vocabulary.value_scales["GLUCOSE"].items():
        assert rounded[unit] == values.round_scale(exact, 2) != exact and rounded[unit].patients == exact.patients
        assert rounded[unit].median == pytest.approx(exact.median, abs=0.05 * exact.deviation)
        assert rounded[unit].deviation == pytest.approx(exact.deviation, 0.05)
    rare = values.add_units(table([(subject, 400, "RARE", float(subject)) for subject in range(9)]))
    samples = [vocabulary.sample_values(rare, values.KEYS)]
    assert values.fit_scales(samples, 9) == {"RARE": {"": (4.0, pytest.approx(4 / 1.349), 9)}}
    assert values.fit_scales(samples, 10) == values.fit_scales(samples, 2, digits=2) == {}


@pytest.mark.parametrize("deviation", [9.96, 0.0996, 1.0, 3.456, 12345.6])
def test_a_rounded_scale_stays_as_it_is(deviation):
    rounded = values.round_scale(vocabulary.ValueScale(138.2345, deviation, 9), 2)
    assert values.round_scale(rounded, 2) == rounded and rounded.deviation == pytest.approx(deviation, rel=0.05)
    assert abs(rounded.median - 138.2345) <= 0.05 * rounded.deviation


def test_a_fitted_vocabulary_scales_other_data_as_its_own(measured):
    config, _, prepared = measured
    other = prepare(dataclasses.replace(config, min_patients=1), prepared.vocabulary)
    assert other.vocabulary == prepared.vocabulary
    assert repr(values_of(other, "held_out")) == repr(values_of(prepared, "held_out"))


def test_without_continuous_values_the_prepared_data_are_those_of_before(measured):
    config = measured[0]
    binned, none = (prepare(dataclasses.replace(config, value_encoding=kind)) for kind in ("bins", "none"))
    assert "GLUCOSE//Q1" in binned.vocabulary.codes and set(none.vocabulary.codes) == set(measured[2].vocabulary.codes)
    for prepared in (binned, none):
        assert dataset.read(prepared.folder, "train").values is None
        assert "value_scales" not in (prepared.folder / "vocabulary.json").read_text()
        assert not [key for key in prepared.report if key.startswith("values")]


def test_a_repeat_of_a_code_with_another_value_is_kept(tmp_path):
    folder = MedsFolder(tmp_path)
    rows = [(subject, 400, "LAB", float(value)) for subject in range(10) for value in (subject, subject, subject + 1)]
    folder.shard("0", rows)
    folder.splits({subject: ("train", "train", "train", "tuning", "held_out")[subject % 5] for subject in range(10)})
    prepared = prepare(folder.config(value_encoding="continuous"))
    assert prepared.report["repeats_left_out"] == 10 and prepared.report["tokens/train"] == 12


def with_values(patients: dataset.Patients) -> dataset.Patients:
    """Gives most timed tokens a value that names the token: its index."""
    numbers = np.arange(len(patients.codes), dtype=np.float32)
    has_value = (patients.visits >= 0) & (numbers % 4 > 0)
    return dataclasses.replace(patients, values=np.where(has_value, numbers, np.nan).astype(np.float32))


def test_values_stay_with_their_tokens_from_windows_to_rows():
    plain = random_patients(3, 30)
    patients = with_values(plain)
    index = windows.index_visits(patients, 32)
    epoch = batches.training_epoch(patients, index, 0, 0)
    batch = batches.batch_of(patients, index, epoch, 0, len(epoch.plan))
    seen = np.flatnonzero(~np.isnan(batch["values"]))
    tokens = batch["values"].ravel()[seen].astype(int)
    assert batch["values"].dtype == np.float32 and len(seen) > 100
    np.testing.assert_array_equal(batch["codes"].ravel()[seen], patients.codes[tokens])
    np.testing.assert_array_equal(batch["times"].ravel()[seen], patients.times[tokens])
    is_code = batch["maskable"] | (batch["codes"] == vocabulary.UNK)
    assert np.isnan(batch["values"][~is_code]).all()  # padding, [CLS], [SEP]
    without = batches.batch_of(plain, index, batches.training_epoch(plain, index, 0, 0), 0, len(epoch.plan))
    assert batch.keys() - without.keys() == {"values"}
    for name, column in without.items():
        np.testing.assert_array_equal(column, batch[name])
    assert "values" in batches.one_a_row(patients, 32) and "values" not in batches.one_a_row(plain, 32)


def test_histories_and_query_tokens_keep_values():
    patients = with_values(random_patients(4, 20))
    half = histories.truncate(patients, np.arange(20), patients.last_times)[0]
    queried = event_targets.insert_query_tokens(patients, 0)
    origins = patients.origins.astype("timedelta64[m]") + np.datetime64("2000-01-01T00:00")
    ends = origins + (patients.last_times + 1).astype("timedelta64[us]")
    marked = histories.append_prediction_token(patients, ends, 256)
    assert len(half.codes) < len(patients.codes) < min(len(queried.codes), len(marked.codes))
    for found in (half, queried, marked):
        assert found.values is not None and found.values.dtype == np.float32
        kept = np.flatnonzero(~np.isnan(found.values))
        np.testing.assert_array_equal(found.codes[kept], patients.codes[found.values[kept].astype(int)])
        assert len(found.values) == len(found.codes)
