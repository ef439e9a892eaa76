"""Texts of events as tokens of their own."""

import dataclasses

import polars as pl
import pytest

from behrt_jax.data import events
from behrt_jax.data.prepare import prepare
from tests.data.handmade import SPLITS, SUBJECTS, MedsFolder, table
from tests.data.test_back_off import tokens_of

# Answers of the ten patients; the first six are train patients. Each also has a number under the same code, and a note.
ANSWERS = ["Never", " Never ", "Never", "Never", "Twice a day", "", "Never", "Always", "Never", "Twice a day"]


@pytest.fixture
def answers(meds) -> MedsFolder:
    rows, texts = [], []
    for subject, answer in zip(SUBJECTS, ANSWERS, strict=True):
        rows += [(subject, None, "STATIC"), (subject, 1, "SMOKES"), (subject, 2, "SMOKES", 3.0), (subject, 3, "NOTE")]
        texts += ["Never", answer, "Never", "Seen today. " * 20]
    meds.shard("0", table(rows).with_columns(text_value=pl.Series(texts, dtype=pl.String)))
    meds.splits(SPLITS)
    return meds


def test_texts_of_enough_train_patients_are_tokens_and_others_are_those_of_their_codes(answers):
    config = answers.config(text_values=True, min_patients=3, value_bins=0)
    found = prepare(config)
    assert set(found.vocabulary.codes) == {"STATIC", "SMOKES//Never", "SMOKES", "NOTE"}
    for split in events.SPLITS:
        for subject, answer in zip(SUBJECTS, ANSWERS, strict=True):
            if SPLITS[subject] == split:
                first = "SMOKES//Never" if answer.strip() == "Never" else "SMOKES"
                assert tokens_of(found, subject, split) == ["STATIC", first, "SMOKES", "NOTE"]
    assert sum(found.report[f"unknown/{split}"] for split in events.SPLITS) == 0
    again = prepare(dataclasses.replace(config), found.vocabulary)  # as a trained model reads them
    assert [tokens_of(again, subject) for subject in SUBJECTS[:6]] == [
        tokens_of(found, subject) for subject in SUBJECTS[:6]
    ]


def test_without_the_key_texts_are_not_read(answers):
    found = prepare(answers.config(min_patients=3, value_bins=0))
    assert tokens_of(found, SUBJECTS[0]) == ["STATIC", "SMOKES", "SMOKES", "NOTE"]


def test_shards_without_texts_and_with_numbers_in_bins(answers):
    rows = [(subject, 9, "SMOKES", float(subject % 10)) for subject in SUBJECTS]
    config = answers.config(text_values=True, min_patients=3, value_bins=2)
    plain = MedsFolder(answers.root.parent, "plain")
    plain.shard("0", rows)
    plain.splits(SPLITS)
    found = prepare(config)
    assert tokens_of(found, SUBJECTS[0])[1:3] == ["SMOKES//Never", "SMOKES//Q1"]
    other = prepare(dataclasses.replace(config, path=str(plain.root)), found.vocabulary)
    assert tokens_of(other, SUBJECTS[2]) == ["SMOKES//Q1"]


def test_bundled_answers_are_told_apart(bundled_config, tmp_path):
    smoking = "OBSERVATION//LOINC//72166-2"
    config = dataclasses.replace(
        bundled_config, codes_include=(smoking,), codes_exclude=(), text_values=True, prepared_dir=str(tmp_path)
    )
    found = prepare(config)
    assert f"{smoking}//Never smoked tobacco (finding)" in found.vocabulary.codes and len(found.vocabulary.codes) > 1
    assert found.report["unknown/train"] == 0
