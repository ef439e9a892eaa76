"""Groups of codes to compare neighbours with: parents, kinds, ICD, first words of descriptions, diseases."""

import re
from pathlib import Path

import numpy as np
import polars as pl

from behrt_jax.data import events
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.exploration import disease_groups

ICD_CODE = re.compile(r"ICD(?:-?(\d+)(?:CM|PCS)?(?://|/)|//(\d+)//)([0-9A-Z]{3}[0-9A-Z.]*)$")
SIMULATED = re.compile(r"//SIM//(\w+)-\d+$")  # experiments.simulate names codes after the disease that causes them
WORD = re.compile(r"[a-z]{5,}")
# The first category of each chapter of ICD-9, numbered; E and V codes follow.
ICD9_CHAPTERS = (1, 140, 240, 280, 290, 320, 390, 460, 520, 580, 630, 680, 710, 740, 760, 780, 800)
# The last category of each range of ICD-10, with the matching chapter of ICD-9.
ICD10_CHAPTERS = (
    *(("B99", 1), ("D49", 2), ("D89", 4), ("E89", 3), ("F99", 5), ("H95", 6), ("I99", 7), ("J99", 8), ("K95", 9)),
    *(("L99", 12), ("M99", 13), ("N99", 10), ("O9A", 11), ("P96", 15), ("Q99", 14), ("R99", 16), ("T88", 17)),
)
CHAPTER_E, CHAPTER_V = 18, 19


def find_groups(
    vocabulary: Vocabulary, descriptions: list[str], data: str | Path, diseases: str | Path
) -> dict[str, np.ndarray]:
    """Finds groups of codes from their names and from the metadata of their data set.

    Args:
      vocabulary: V tokens.
      descriptions: of each token, by id; empty if there is none.
      data: the MEDS data set, for parent codes.
      diseases: a file of disease groups such as configs/diseases.yaml.

    Returns:
      By kind of group, (V,) int: the group of each token, -1 without one. Omits kinds with fewer than two groups of two
      or more codes.
    """
    tokens = vocabulary.tokens[NUM_SPECIAL:]
    texts = dict(zip(vocabulary.tokens, descriptions, strict=True))
    kinds = {code: code.partition("//")[0] for code in tokens if "//" in code}
    words = {code: WORD.search(texts[code].lower()) for code in kinds}
    labels_by_kind = {
        "parent code": _parents(data, vocabulary),
        "kind of code": kinds,
        "ICD category": {code: name for code in tokens if (name := icd_category(code))},
        "ICD chapter": {code: str(number) for code in tokens if (number := icd_chapter(code))},
        "first word of description": {code: f"{kinds[code]} {word[0]}" for code, word in words.items() if word},
        "disease": _diseases(diseases, vocabulary, texts),
        "simulated disease": {code: disease[1] for code in tokens if (disease := SIMULATED.search(code))},
    }
    numbered = {name: _number(labels, vocabulary) for name, labels in labels_by_kind.items()}
    return {name: groups for name, groups in numbered.items() if (np.bincount(groups + 1)[1:] > 1).sum() > 1}


def _number(labels: dict[str, str], vocabulary: Vocabulary) -> np.ndarray:
    names = {name: number for number, name in enumerate(sorted({*labels.values()}))}
    return np.array([names[labels[token]] if token in labels else -1 for token in vocabulary.tokens])


def icd_category(code: str) -> str | None:
    """Returns the kind, version and first three characters of an ICD diagnosis or procedure; None for other codes.

    >>> icd_category("DIAGNOSIS//ICD//10//E875"), icd_category("CONDITION//ICD9CM//250.00")
    ('DIAGNOSIS 10 E87', 'CONDITION 9 250')
    """
    match = ICD_CODE.search(code)
    return f"{code.partition('//')[0]} {match[1] or match[2]} {match[3][:3]}" if match else None


def icd_chapter(code: str) -> int | None:
    """Returns the ICD-9 chapter number of an ICD-9 or ICD-10 diagnosis; 18 for E codes, 19 for V codes.

    >>> icd_chapter("DIAGNOSIS//ICD//10//E875"), icd_chapter("DIAGNOSIS//ICD//9//25000")
    (3, 3)
    """
    category = icd_category(code)
    if not category or category.startswith("PROCEDURE"):
        return None
    _, version, name = category.rsplit(maxsplit=2)
    if version == "9":
        letters = {"E": CHAPTER_E, "V": CHAPTER_V}
        return letters[name[0]] if name[0] in letters else int(np.searchsorted(ICD9_CHAPTERS, int(name), "right"))
    chapters = (chapter for last, chapter in ICD10_CHAPTERS if name <= last)
    return next(chapters, CHAPTER_V if name >= "Z" else CHAPTER_E)


def _parents(data: str | Path, vocabulary: Vocabulary) -> dict[str, str]:
    """Returns for each code the parent with the fewest codes of the vocabulary, among parents of two or more."""
    table = events.read_codes(data, "parent_codes").rename({"parent_codes": "parent"})
    links = table.filter(pl.col("code").is_in(vocabulary.codes))
    links = links.explode("parent", empty_as_null=False).drop_nulls().unique()
    links = links.with_columns(size=pl.len().over("parent")).filter(pl.col("size") > 1)
    return dict(links.sort("size", "parent").unique("code", keep="first").select("code", "parent").iter_rows())


def _diseases(file: str | Path, vocabulary: Vocabulary, said: dict[str, str]) -> dict[str, str]:
    """Returns for each code the first group in a file of diseases that contains it."""
    groups = disease_groups.match_codes(file, list(vocabulary.codes), said)
    return {code: name for name, codes in reversed(groups.items()) for code in codes}
