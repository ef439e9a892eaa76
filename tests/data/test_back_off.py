"""Codes that a vocabulary does not know: parents that it knows, and rows that are added for them."""

import collections
import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import dataset, events
from behrt_jax.data.prepare import prepare
from behrt_jax.data.roll_up import find_ancestors, read_links
from behrt_jax.data.vocabulary import Vocabulary
from tests.data.handmade import SPLITS, SUBJECTS, MedsFolder, assert_clear, write_cohort
from tests.data.test_prepare import decoded

MIMIC = Path(__file__).parents[3] / "shared" / "data" / "mimic-iv-demo-meds"
FIRST = SUBJECTS[0]


def nearest_known_ancestors(root: Path, known: dict[str, int]) -> dict[str, str]:
    return find_ancestors((), read_links(root, ()), (), known)


def write_codes(root: Path, parents: dict | pl.DataFrame) -> Path:
    """Writes `metadata/codes.parquet`, of each code its parents."""
    file = root / "metadata" / "codes.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(parents, dict):
        schema = {"code": pl.String, "parent_codes": pl.List(pl.String)}
        parents = pl.DataFrame({"code": list(parents), "parent_codes": list(parents.values())}, schema=schema)
    parents.write_parquet(file)
    return file


def test_the_nearest_known_ancestor_is_found(tmp_path):
    known = dict(OFTEN=9, SAME_B=5, SAME_A=5, RARE=2)
    write_codes(
        tmp_path,
        {
            "child": ["RARE"],
            "grandchild": ["child"],
            "near before often": ["RARE", "over often"],
            "over often": ["OFTEN"],
            "often before rare": ["RARE", "OFTEN"],
            "by name": ["SAME_B", "SAME_A"],
            "through a cycle": ["back"],
            "back": ["through a cycle", "child"],
            "lost": ["lost too", "nowhere", None],
            "lost too": ["lost", "lost too"],
            "nothing": None,
            "empty": [],
            "RARE": ["OFTEN"],  # is known itself
        },
    )
    expected = {"child": "RARE", "grandchild": "RARE", "near before often": "RARE", "over often": "OFTEN"}
    expected |= {"often before rare": "OFTEN", "by name": "SAME_A", "through a cycle": "RARE", "back": "RARE"}
    assert nearest_known_ancestors(tmp_path, known) == expected


@pytest.mark.parametrize("seed", range(5))
def test_random_graphs_as_a_plain_search_finds_them(tmp_path, seed):
    rng = np.random.default_rng(seed)
    names = [f"c{number}" for number in range(60)]
    parents = {name: [names[i] for i in rng.integers(0, 60, rng.integers(0, 4))] for name in names}
    counts = {name: int(rng.integers(1, 4)) for name in names[:8]}
    expected = {}
    for name in names[8:]:
        level, seen = {name}, {name}
        while level and not (hits := level & counts.keys()):
            level = {parent for code in level for parent in parents[code]} - seen
            seen |= level
        if level:
            expected[name] = min(hits, key=lambda hit: (-counts[hit], hit))
    write_codes(tmp_path, parents)
    assert expected and nearest_known_ancestors(tmp_path, counts) == expected


def test_without_a_table_or_a_column_or_a_parent_there_is_no_back_off(tmp_path):
    assert nearest_known_ancestors(tmp_path, {"A": 1}) == {}
    empty = pl.Series([None, None])
    for column in ([], [empty], [empty.cast(pl.List(pl.Null))]):
        write_codes(tmp_path, pl.DataFrame([pl.Series("code", ["a", "b"]), *[c.alias("parent_codes") for c in column]]))
        assert nearest_known_ancestors(tmp_path, {"A": 1}) == {}


MALFORMED = {
    "string": ({"code": ["a"], "parent_codes": ["A"]}, "column 'parent_codes' is String; expected List(String)"),
    "numbers": ({"code": ["a"], "parent_codes": [[1]]}, "column 'parent_codes' is List(Int64); expected List(String)"),
    "no code": ({"parent_codes": [["A"]]}, "column 'code' is missing; expected String"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_table_is_named(cohort, name):
    columns, message = MALFORMED[name]
    fitted = prepare(cohort.config()).vocabulary
    before = cohort.left_behind()
    file = write_codes(cohort.root, pl.DataFrame(columns))
    with pytest.raises(ValueError) as error:
        prepare(cohort.config(), fitted)
    assert_clear(error, file, message)
    assert cohort.left_behind() == before
    prepare(cohort.config())  # of no concern to a vocabulary of its own
    file.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="codes.parquet: not a readable parquet file"):
        prepare(cohort.config(), fitted)


# Another data set: codes of three kinds, and a vocabulary that knows A, its parent, and a measurement with values.
@pytest.fixture
def fitted(cohort) -> Vocabulary:
    """Knows SECRET//SEX, SECRET//A and two bins of SECRET//B, but not SECRET//B without a value."""
    return prepare(cohort.config(value_bins=2)).vocabulary


def person(subject: int) -> list[tuple]:
    return [
        (subject, None, "SECRET//SEX"),
        (subject, 10, "CHILD", 7.0),
        (subject, 10, "SECRET//A"),
        (subject, 10, "SECRET//B", 3.0),
        (subject, 20, "CHILD"),
        (subject, 20, "MEASURED CHILD", 0.0),
        (subject, 20, "NEW", float(subject % 10)),
        *[(subject, 30, "RARE")] * (subject == FIRST),
    ]


@pytest.fixture
def other(tmp_path) -> MedsFolder:
    folder = MedsFolder(tmp_path, "other")
    folder.shard("0", [row for subject in SUBJECTS for row in person(subject)])
    folder.splits(SPLITS)
    write_codes(folder.root, {"CHILD": ["between"], "between": ["SECRET//A"], "MEASURED CHILD": ["SECRET//B"]})
    return folder


def tokens_of(prepared, subject: int, split: str = "train") -> list[str]:
    return [row[0] for row in decoded(prepared, split)[subject]]


def test_codes_are_read_as_parents_and_counted(other, fitted):
    found = prepare(other.config(value_bins=2), fitted)
    # CHILD and SECRET//A in one visit are one token; no value makes a bin of a parent that is measured otherwise.
    visits = ["SECRET//A", "SECRET//B//Q2", "SECRET//A", "[UNK]", "[UNK]"]
    assert tokens_of(found, FIRST + 1) == ["SECRET//SEX", *visits]
    assert tokens_of(found, FIRST) == ["SECRET//SEX", *visits, "[UNK]"] and found.vocabulary == fitted
    report = {kind: found.report[f"{kind}/train"] for kind in ("tokens", "backed_off", "unknown", "patients_known")}
    assert report == {"tokens": 37, "backed_off": 12, "unknown": 13, "patients_known": 0}
    assert "codes_added" not in found.report
    write_codes(other.root, {code: ["SECRET//SEX"] for code in ("NEW", "RARE", "MEASURED CHILD")})
    anew = prepare(other.config(value_bins=2), fitted)
    assert tokens_of(anew, FIRST + 1)[-2:] == ["[UNK]", "SECRET//SEX"]
    assert [anew.report[f"{kind}/train"] for kind in ("backed_off", "unknown", "patients_known")] == [7, 12, 0]
    (other.root / "metadata" / "codes.parquet").unlink()
    without = prepare(other.config(value_bins=2), fitted)
    assert [without.report[f"{kind}/train"] for kind in ("backed_off", "unknown")] == [0, 25]
    assert len({run.folder for run in (found, anew, without)}) == 3


def test_parents_do_not_matter_to_a_vocabulary_of_its_own(other):
    with_parents = prepare(other.config())
    (other.root / "metadata" / "codes.parquet").unlink()
    assert prepare(other.config()).folder == with_parents.folder
    assert with_parents.report["backed_off/train"] == 0


def test_patients_all_of_whose_codes_are_known_are_counted(cohort, fitted):
    other = write_cohort(MedsFolder(cohort.root.parent, "others"))
    other.shard("1", [row for subject in SUBJECTS[5:] for row in ((subject, 1, "SECRET//A"), (subject, 2, "NEW"))])
    found = prepare(other.config(value_bins=2), fitted)
    assert [found.report[f"patients_known/{split}"] for split in events.SPLITS] == [5, 0, 0]
    assert [found.report[f"patients/{split}"] for split in events.SPLITS] == [6, 2, 2]


def test_a_vocabulary_of_another_data_set_is_an_error(cohort, fitted):
    foreign = MedsFolder(cohort.root.parent, "foreign")
    foreign.shard("0", [(subject, day, f"ICD//{day}") for subject in SUBJECTS for day in range(3)])
    foreign.splits(SPLITS)
    before = cohort.left_behind()
    for splits in (events.SPLITS, ()):
        with pytest.raises(ValueError) as error:
            prepare(foreign.config(), fitted, splits=splits)
        assert_clear(
            error, foreign.root, "the code of none of the 30 events that are left", "parent_codes", "add_codes"
        )
    assert cohort.left_behind() == before
    assert prepare(foreign.config(), fitted, add_codes=True).report["codes_added"] == 3
    write_codes(foreign.root, {"ICD//1": ["SECRET//A"]})
    assert prepare(foreign.config(), fitted).report["backed_off/train"] == 6


def test_added_codes_come_last_as_if_the_vocabulary_were_fitted_on_them(other, fitted):
    found = prepare(other.config(value_bins=2), fitted, add_codes=True)
    # By falling count, then name: CHILD twice a patient; the values of CHILD and MEASURED CHILD fall in one bin each.
    bins = {"CHILD//Q1", "CHILD", "MEASURED CHILD//Q1", "NEW//Q1", "NEW//Q2"}
    old, added = found.vocabulary.codes[: len(fitted.codes)], found.vocabulary.codes[len(fitted.codes) :]
    assert old == fitted.codes and found.vocabulary.counts[: len(old)] == fitted.counts
    assert set(added) == bins and found.report["codes_added"] == 5
    assert found.vocabulary.counts[len(old) :] == (6, 6, 6, 3, 3)
    assert found.vocabulary.value_edges == {
        **fitted.value_edges,
        "NEW": (2.5,),
        "CHILD": (7.0,),
        "MEASURED CHILD": (0.0,),
    }
    visits = ["CHILD//Q1", "SECRET//A", "SECRET//B//Q2", "CHILD", "MEASURED CHILD//Q1", "NEW//Q1"]
    assert tokens_of(found, FIRST) == ["SECRET//SEX", *visits, "[UNK]"]  # RARE is of one patient
    assert found.report["unknown/train"] == 1 and found.report["patients_known/train"] == 5
    assert {SUBJECTS[8]} <= decoded(found, "held_out").keys() and found.report["unknown/held_out"] == 0
    # What the extended vocabulary gives for the same data later, and for other data.
    later = prepare(other.config(value_bins=2), found.vocabulary)
    assert all(decoded(later, split) == decoded(found, split) for split in events.SPLITS)
    again = prepare(other.config(value_bins=2), found.vocabulary, add_codes=True)
    assert again.vocabulary.fingerprint == found.vocabulary.fingerprint and again.report["codes_added"] == 0


def test_codes_that_are_known_without_values_stay_so(other, cohort):
    fitted = prepare(cohort.config(value_bins=0)).vocabulary
    found = prepare(other.config(value_bins=2), fitted, add_codes=True)
    assert "SECRET//B" not in found.vocabulary.value_edges and "SECRET//B" in tokens_of(found, FIRST)


def test_a_code_of_too_few_patients_backs_off_to_an_added_one(other, fitted):
    write_codes(other.root, {"RARE": ["CHILD"], "CHILD": ["SECRET//A"]})
    assert tokens_of(prepare(other.config(value_bins=2), fitted, add_codes=True), FIRST)[-1] == "CHILD"


@pytest.mark.parametrize("bins", [0, 2, 10])  # of ten bins none has two patients, so that all are [UNK]
def test_on_its_own_data_nothing_is_added(cohort, bins):
    own = prepare(cohort.config(value_bins=bins))
    found = prepare(cohort.config(value_bins=bins), own.vocabulary, add_codes=True)
    assert found.report["codes_added"] == 0 and found.vocabulary.fingerprint == own.vocabulary.fingerprint
    assert all(decoded(found, split) == decoded(own, split) for split in events.SPLITS)


@pytest.mark.skipif(not MIMIC.is_dir(), reason="the MIMIC-IV demo does not lie beside the repository")
def test_real_diagnoses_are_read_as_their_concepts(tmp_path, bundled_config):
    """A vocabulary of ICD concepts, as `parent_codes` names them, knows the hospital's own codes for them by these."""
    config = dataclasses.replace(bundled_config, path=str(MIMIC), codes_include=("DIAGNOSIS//*", "ICD*", "GENDER//*"))
    raw = pl.read_parquet(sorted((MIMIC / "data").rglob("*.parquet"))).filter(pl.col("code").str.starts_with("DIAG"))
    table_of = pl.read_parquet(MIMIC / "metadata" / "codes.parquet").explode("parent_codes", empty_as_null=False)
    parent = dict(table_of.filter(pl.col("code").str.starts_with("DIAG")).select("code", "parent_codes").iter_rows())
    concepts = MedsFolder(tmp_path, "concepts")
    concepts.shard("0", raw.with_columns(pl.col("code").replace(parent)).sort("subject_id", "time"))
    concepts.splits(pl.read_parquet(MIMIC / "metadata" / "subject_splits.parquet"))
    fitted = prepare(dataclasses.replace(config, path=str(concepts.root), prepared_dir=str(tmp_path / "p"))).vocabulary
    found = prepare(config, fitted)
    expected = {code: above for code, above in parent.items() if above in fitted.ids}
    assert len(expected) > 90 and nearest_known_ancestors(MIMIC, fitted.count_of).items() >= expected.items()
    codes = collections.Counter(dataset.read(found.folder, "train").codes.tolist())
    for name, number in zip(fitted.codes, fitted.counts, strict=True):
        assert codes[fitted.ids[name]] == number, name
    assert found.report["backed_off/train"] == sum(
        number for name, number in zip(fitted.codes, fitted.counts, strict=True) if name.startswith("ICD")
    )
