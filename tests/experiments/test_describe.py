"""The page about a data set, read as a reader's browser reads it."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from behrt_jax import describe_data
from behrt_jax.data import metadata
from tests.data.handmade import MedsFolder, assert_clear, table
from tests.experiments.pages import Page, visit

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "data" / "synthea-1151"
MIMIC = ROOT.parent / "shared" / "data" / "mimic-iv-demo-meds"
SUBJECTS = [71_000_000 + number for number in range(60)]
PLANTED = ("SECRET//1", "words of a secret", "secret-unit", "980000", "980,000", "RARE_KIND")


def history(subject: int) -> list[tuple]:
    """Three visits; one patient has a code, a unit and a value that no other has, and two are the only ones to die."""
    number = subject % 100
    rows = [
        (subject, None, "GENDER//F" if number % 3 else "GENDER//M"),
        (subject, number, "MEDS_BIRTH"),
        (subject, 9000 + number, "CONDITION//D"),
        (subject, 9000 + number, "LAB//K", 3.0 + number / 100, "mmol/L"),
        (subject, 9000 + number, "LAB//K", 50.0 + number, "mg/dL" if number % 2 else None),
        (subject, 9400, "CONDITION//E"),
        (subject, 9500, "CONDITION//D"),
    ]
    if number == 3:
        rows += [(subject, 9600, "SECRET//1"), (subject, 9600, "LAB//K", 980_000.0, "secret-unit")]
        rows += [(subject, 9601, "RARE_KIND//2")]
    return rows + [(subject, 9700, "MEDS_DEATH")] * (number in (3, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> MedsFolder:
    folder = MedsFolder(tmp_path_factory.mktemp("described"), "hospital")
    rows = [row for subject in SUBJECTS for row in history(subject)]
    units = pl.Series([row[4] if row[4:] else None for row in rows])
    folder.shard("0", table([row[:4] for row in rows]).with_columns(unit=units))
    folder.splits({subject: ("train", "tuning", "held_out")[i // 20] for i, subject in enumerate(SUBJECTS)})
    codes = pl.DataFrame(
        {"code": ["SECRET//1", "CONDITION//D"], "description": ["words of a secret", "a <b>disease</b>"]}
    )
    codes.write_parquet(folder.root / "metadata" / "codes.parquet")
    return folder


def describe(folder: MedsFolder, name: str, **options) -> tuple[Path, str, dict]:
    page = describe_data(folder.root, folder.root.parent / name, prepared_dir=str(folder.prepared_dir), **options)
    text = page.with_name("data.json").read_text(encoding="utf-8")
    return page, page.read_text(encoding="utf-8") + text, json.loads(text)


@pytest.fixture(scope="module")
def described(folder):
    return describe(folder, "page")


def test_the_numbers_are_those_of_the_data(described):
    _, _, summary = described
    assert summary["min_patients"] == 11 and not summary["is_synthetic"]
    assert summary["findings"]["all"] == {"events": 60 * 7 + 5, "patients": 60}
    assert summary["splits"] == {"train": 20, "tuning": 20, "held_out": 20}
    assert summary["sexes"] == {"F": 40, "M": 20}
    codes = {row["code"]: row for row in summary["codes"]}
    assert set(codes) == {"CONDITION//D", "CONDITION//E", "LAB//K"}
    assert (codes["CONDITION//D"]["events"], codes["CONDITION//D"]["patients"]) == (120, 60)
    assert summary["codes_of_few_patients"] == 3  # SECRET//1, RARE_KIND//2, MEDS_DEATH
    assert summary["quantiles"]["visits a patient"]["50%"] == 3
    units = {row["unit"]: row for row in summary["values"]}
    assert {unit: row["patients"] for unit, row in units.items()} == {"mmol/L": 60, "mg/dL": 30, "": 30}
    assert units["mmol/L"]["50%"] == 3.3 and units["mmol/L"]["5%"] is None
    rows = {row["patients_cut"] for row in summary["preparation"]["rows"].values()}
    assert rows == {0} and summary["preparation"]["vocabulary"] == 5 + 4  # special tokens, CONDITION and GENDER


def test_what_deserves_a_look_comes_with_what_to_do(described):
    page, text, summary = described
    found = " ".join(f"{each['what']} {each['do']}" for each in summary["warnings"])
    assert "With a number without a unit: 30 events of 30 patients. Add the units" in found
    assert "more than one unit: 1, such as LAB//K. Convert" in found
    seen = Page(page.read_text(encoding="utf-8"))
    assert all(each["do"] in seen.text for each in summary["warnings"])
    assert seen.ids().index("warnings") < seen.ids().index("patients")


def test_what_the_data_can_carry_is_told_with_the_reason(described):
    _, _, summary = described
    assert summary["objectives"]["mlm"]["possible"] and summary["objectives"]["next_visit"]["possible"]
    assert summary["tasks"]["death"] == {"possible": True, "why": "outcome death: fewer than 11 patients"}
    assert summary["tasks"]["readmission"]["why"] == "index: 0 patients; outcome admission: 0 patients"
    assert not summary["tasks"]["readmission"]["possible"] and not summary["baselines"]["oracle (exact)"]["possible"]
    assert summary["baselines"]["age and sex"]["possible"]


def test_nothing_of_one_patient_is_shown(folder, described):
    _, text, summary = described
    assert not [word for word in PLANTED if word in text]
    assert not re.search(r"7100\d{4}|\b20[0-3]\d-\d\d", text)
    assert summary["findings"]["of patients with a death"] == {"events": None, "patients": None}
    _, shown, _ = describe(folder, "shown", min_patients=1)
    assert all(word in shown for word in PLANTED)
    assert not re.search(r"7100\d{4}|\b20[0-3]\d-\d\d", shown)


def test_the_page_loads_nothing_and_runs_no_text(described):
    seen = Page(described[0].read_text(encoding="utf-8"))
    for tag, found in seen.elements:
        for key in ("src", "href", "action", "data", "srcset"):
            assert found.get(key, "#").startswith(("#", "data:")), (tag, found)
    assert "a <b>disease</b>" in " ".join(seen.cells) and "b" not in {tag for tag, _ in seen.elements}
    assert seen.headings.count(1) == 1 and len(seen.ids()) == len(set(seen.ids()))


def test_data_that_cannot_be_prepared_gets_a_page_too(tmp_path, messages):
    folder = MedsFolder(tmp_path)
    folder.shard("0", [(s, day, code) for s in SUBJECTS for day, code in ((500, "MEDS_BIRTH"), (100, "A"))][::-1])
    page, _, summary = describe(folder, "page")
    assert summary["preparation"] is None and not summary["objectives"]["mlm"]["possible"]
    assert summary["findings"]["before birth"] == {"events": 60, "patients": 60}
    assert any(str(folder.root / "data" / "0.parquet") in line and "not sorted" in line for line in messages)
    assert "Before birth: 60 events of 60 patients." in Page(page.read_text(encoding="utf-8")).text
    assert str(tmp_path) not in page.read_text(encoding="utf-8")


def test_a_missing_folder_and_a_negative_floor_are_refused(tmp_path):
    with pytest.raises(ValueError) as error:
        describe_data(tmp_path / "gone", tmp_path / "page")
    assert_clear(error, tmp_path / "gone", "no such directory")
    with pytest.raises(ValueError) as error:
        describe_data(tmp_path, tmp_path / "page", min_patients=-1)
    assert_clear(error, "min_patients", "-1")
    assert not (tmp_path / "page").exists()


def test_bundled_patients(workplace, tmp_path):
    describe_data(workplace.data, tmp_path, min_patients=1, prepared_dir=str(workplace.folder / "prepared"))
    summary = json.loads((tmp_path / "data.json").read_text(encoding="utf-8"))
    assert summary["splits"] == {"held_out": 10, "train": 40, "tuning": 10}
    assert summary["quantiles"]["year of events"]["largest"] <= 2025
    assert summary["tasks"]["mortality_1y"]["possible"] and not summary["tasks"]["mimic_readmission"]["possible"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "patients", "possible", "impossible"),
    [
        (BUNDLED, {"train": 806, "tuning": 173, "held_out": 172}, "diagnosis_hypertension", "mimic_mortality"),
        (MIMIC, {"train": 70, "tuning": 15, "held_out": 15}, "mimic_mortality", "diagnosis_hypertension"),
    ],
)
def test_whole_data_sets(data, patients, possible, impossible, tmp_path):
    if not data.exists():
        pytest.skip(f"{data.name} is not here")
    page = describe_data(data, tmp_path / "page", prepared_dir=str(tmp_path / "prepared"))
    summary = json.loads(page.with_name("data.json").read_text(encoding="utf-8"))
    assert summary["splits"] == patients and summary["is_synthetic"] == metadata.is_synthetic(data)
    assert summary["tasks"][possible]["possible"] and not summary["tasks"][impossible]["possible"]
    assert all(each["possible"] for each in summary["objectives"].values())
    counts = summary["findings"]["all"]
    assert counts["patients"] == sum(patients.values())
    assert not list(data.rglob("*.html"))


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1024])
def test_the_page_opens_fits_and_asks_for_nothing(browser, described, width):
    page = described[0]
    tab, troubles = visit(browser, page, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth > 0)")
    assert tab.locator("section").count() == 7 and troubles == []
    tab.close()
