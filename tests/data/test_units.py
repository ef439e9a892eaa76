"""Numbers in several units of one code, converted by a user's table."""

import dataclasses

import numpy as np
import pytest

from behrt_jax.data.prepare import prepare
from tests.data.handmade import SPLITS, SUBJECTS, MedsFolder, assert_clear
from tests.data.test_values import values_of, write_measurements

HEADER = "code,unit,factor,new_unit"


@pytest.fixture
def measurements(meds) -> tuple[MedsFolder, dict[int, list[float]]]:
    return meds, write_measurements(meds)


def write_table(folder: MedsFolder, *lines: str) -> str:
    file = folder.root.parent / "units.csv"
    file.write_text("\n".join(lines))
    return str(file)


def test_numbers_of_the_unit_are_converted_and_no_others(measurements):
    folder, mmol = measurements
    table = write_table(folder, HEADER, f"GLUCOSE,mg/dL,{1 / 18},mmol/L", "CONSTANT,mg/dL,5,kg")
    config = folder.config(value_encoding="continuous", min_patients=5, unit_table=table)
    found = prepare(config)
    (scale,) = found.vocabulary.value_scales["GLUCOSE"].values()
    train = [value for subject, values in mmol.items() if subject % 5 < 3 for value in values]
    assert set(found.vocabulary.value_scales["GLUCOSE"]) == {"mmol/L"}
    assert scale.median == pytest.approx(np.median(train), abs=1e-4)
    for subject, tokens in values_of(found, "train").items():
        seen = [value for code, value in tokens if code == "GLUCOSE" and not np.isnan(value)]
        expected = np.clip([(value - scale.median) / scale.deviation for value in mmol[subject]], -10, 10)
        np.testing.assert_allclose(seen, expected, atol=1e-4)
    bins = prepare(dataclasses.replace(config, value_encoding="bins", value_bins=2)).vocabulary
    assert bins.value_edges["GLUCOSE"][0] == pytest.approx(np.median(train), abs=0.3)


def test_an_empty_unit_is_that_of_numbers_without_one(meds):
    meds.shard("0", [(subject, 1, "GLUCOSE", 90.0 + subject % 10) for subject in SUBJECTS])
    meds.splits(SPLITS)
    table = write_table(meds, HEADER, "GLUCOSE,,0.1,x")
    scales = prepare(meds.config(value_encoding="continuous", unit_table=table)).vocabulary.value_scales
    assert scales["GLUCOSE"]["x"].median == pytest.approx(9.25)  # of 90 to 95


def test_an_offset_is_added_and_a_changed_table_is_prepared_anew(measurements):
    folder, mmol = measurements
    table = write_table(folder, f"{HEADER},offset", "GLUCOSE,mmol/L,2,x,10")
    config = folder.config(value_encoding="continuous", min_patients=5, unit_table=table)
    scale = prepare(config).vocabulary.value_scales["GLUCOSE"]["x"]
    train = [value for subject, values in mmol.items() if subject % 5 < 3 and subject % 3 for value in values]
    assert scale.median == pytest.approx(2 * np.median(train) + 10, abs=1e-3)
    write_table(folder, f"{HEADER},offset", "GLUCOSE,mmol/L,2,y,10")
    assert "y" in prepare(config).vocabulary.value_scales["GLUCOSE"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("code,unit,factor", "A,B,1"), "expected also new_unit"),
        ((HEADER, "A,B,0,C"), "a factor above 0"),
        ((HEADER, "A,B,many,C"), "a factor above 0"),
        ((HEADER, "A,B,1,"), "a new unit in each row"),
        ((HEADER, "A,B,1,C", "A,B,2,D"), "1 rows repeat a code and unit"),
        (("",), "not a readable table"),
    ],
)
def test_a_table_that_does_not_fit_is_named(measurements, lines, message):
    folder, _ = measurements
    table = write_table(folder, *lines)
    with pytest.raises(ValueError) as error:
        prepare(folder.config(unit_table=table))
    assert_clear(error, table, message)


def test_a_missing_table_is_named(measurements, tmp_path):
    with pytest.raises(ValueError) as error:
        prepare(measurements[0].config(unit_table=str(tmp_path / "none.csv")))
    assert_clear(error, "data.unit_table", tmp_path / "none.csv", "correct the path")
