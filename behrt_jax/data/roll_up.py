"""Roll-up: codes of too few patients, or that a vocabulary lacks, become broader codes (`data.roll_up`)."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from behrt_jax.data import events, files

PARENTS, ICD, PREFIX = RULES = ("parents", "icd", "prefix")
LINK = {"code": pl.String, "parent": pl.String}
_ICD_CODE = re.compile(r"(?P<head>.*ICD\W*(?P<version>9|10).*/)(?P<tail>[A-Z]?[0-9][0-9A-Z.]*)", re.IGNORECASE)


def check(rules: tuple[str, ...]) -> None:
    """Raises a ValueError unless `data.roll_up` is a tuple of `RULES` and of names of tables."""
    expected = f"a tuple of {', '.join(RULES)} and of tables (.csv or .parquet) with the columns code and parent"
    if isinstance(rules, str):
        raise ValueError(f"data.roll_up: found one string, {rules!r}; expected {expected}")
    for rule in rules:
        if rule not in RULES and Path(rule).suffix.lower() not in (".csv", files.SUFFIX):
            raise ValueError(f"data.roll_up: found {rule!r}; expected {expected}")


def icd_category(code: str) -> str | None:
    """Returns the category of an ICD code: three characters, two of an ICD-9 procedure and four of an ICD-9 E code.

    >>> icd_category("DIAGNOSIS//ICD//10//E1140"), icd_category("ICD9Proc/88.64"), icd_category("ICD10CM/E11")
    ('DIAGNOSIS//ICD//10//E11', 'ICD9Proc/88', None)
    """
    match = _ICD_CODE.fullmatch(code)
    if not match:
        return None
    head, version, tail = match["head"], match["version"], match["tail"].replace(".", "")
    length = 3
    if version == "9":
        length = 2 if "proc" in head.lower() else 4 if tail[0] in "Ee" else 3
    return head + tail[:length] if len(tail) > length else None


def prefixes(code: str) -> list[str]:
    """Returns a code without its last part, without its last two, ..., longest first: A//B and A of A//B//C."""
    parts = code.split("//")
    return ["//".join(parts[:number]) for number in range(len(parts) - 1, 0, -1)]


def read_links(path: str | Path, rules: tuple[str, ...]) -> dict[str, pl.DataFrame]:
    """Reads the links of each rule, `code, parent`; no rows for `icd` and `prefix`, which need none.

    Without rules, parents alone count: a trained model's vocabulary meets codes that it lacks.

    Raises:
      ValueError: the file cannot be read, or one of its columns is missing or of another type.
    """
    return {rule: _read_links(path, rule) for rule in rules or (PARENTS,)}


def _read_links(path: str | Path, rule: str) -> pl.DataFrame:
    if rule == PARENTS:
        links = events.read_codes(path, "parent_codes").rename({"parent_codes": "parent"})
        return links.explode("parent", empty_as_null=False).drop_nulls()
    if rule in RULES:
        return pl.DataFrame(schema=LINK)
    file = Path(rule)
    table = files.read_text_table(file, "data.roll_up")
    if missing := LINK.keys() - set(table.columns):
        raise ValueError(f"{file}: columns {', '.join(table.columns)}; expected also {', '.join(sorted(missing))}")
    return table.select(*LINK).drop_nulls()


def make_links(rule: str, codes: Iterable[str]) -> pl.DataFrame:
    """Returns the links that a rule makes of the codes' names: `code, parent`; none for rules that read a table."""
    pairs: list[tuple[str, str]] = []
    if rule == ICD:
        pairs = [(code, category) for code in codes if (category := icd_category(code))]
    elif rule == PREFIX:
        chains = [(code, *prefixes(code)) for code in codes]
        pairs = [link for chain in chains for link in zip(chain, chain[1:], strict=False)]
    return pl.DataFrame(pairs, schema=LINK, orient="row").unique(maintain_order=True)


def stages(rules: tuple[str, ...], read: dict[str, pl.DataFrame], tokens: Iterable[str]) -> list[pl.DataFrame]:
    """Returns the links of the first rule, of the first two, ..., from tokens upwards.

    With rules, a token with a bin of a value (LAB//1//Q7) has its code (LAB//1) as parent.
    """
    names = dict.fromkeys((*tokens, *(name for table in read.values() for name in table["parent"])))
    links = pl.DataFrame(schema=LINK)
    if rules:
        binned = [(name, name.rpartition("//Q")[0]) for name in names if re.fullmatch(r".+//Q\d+", name)]
        links = pl.DataFrame(binned, schema=LINK, orient="row")
        names |= dict.fromkeys(links["parent"])
    found = []
    for rule in read:
        links = pl.concat([links, read[rule], make_links(rule, names)]).unique(maintain_order=True)
        names |= dict.fromkeys(links["parent"])
        found.append(links)
    return found


def nearest_ancestors(links: pl.DataFrame, known: Mapping[str, int]) -> dict[str, str]:
    """Maps codes to their nearest known ancestors, over any number of levels.

    Ties go to the most frequent ancestor, then to the first by name.

    Args:
      links: `code, parent`.
      known: how often each known code occurs. They are not mapped themselves.
    """
    schema = {"parent": pl.String, "target": pl.String, "count": pl.Int64}
    frontier = pl.DataFrame({"parent": [*known], "target": [*known], "count": [*known.values()]}, schema=schema)
    links = links.join(frontier, left_on="code", right_on="parent", how="anti")
    ancestors: dict[str, str] = {}
    while frontier.height:  # breadth-first from the known codes; no code is reached twice
        children = links.join(frontier, on="parent").sort("count", "target", descending=[True, False])
        children = children.unique("code", keep="first", maintain_order=True)
        ancestors.update(zip(children["code"], children["target"], strict=True))
        links = links.join(children, on="code", how="anti")
        frontier = children.select(pl.col("code").alias("parent"), "target", "count")
    return ancestors


def find_ancestors(
    rules: tuple[str, ...], read: dict[str, pl.DataFrame], tokens: Iterable[str], known: Mapping[str, int]
) -> dict[str, str]:
    """Maps tokens that are not known to their nearest known ancestors, each rule where those before it find none.

    `read` is from `read_links`.
    """
    ancestors: dict[str, str] = {}
    for links in stages(rules, read, tokens):
        ancestors = nearest_ancestors(links, known) | ancestors
    return ancestors


def count_patients(tokens: pl.DataFrame, min_patients: int) -> pl.DataFrame:
    """Counts the patients of each token of a shard: `token, patients, subjects`.

    `subjects` lists them where there are fewer than `min_patients`, so that memory does not grow with the patients.
    """
    found = tokens.group_by("token").agg(subjects=pl.col("subject_id").unique())
    found = found.with_columns(patients=pl.col("subjects").list.len())
    return found.with_columns(pl.when(pl.col("patients") < min_patients).then(pl.col("subjects")))


def choose_ancestors(
    rules: tuple[str, ...], read: dict[str, pl.DataFrame], counts: list[pl.DataFrame], min_patients: int
) -> dict[str, str]:
    """Maps rare tokens of train to their nearest ancestors that are frequent, or that are so with what they replace.

    Each rule is for the tokens for which those before it find no ancestor. A token that is frequent with the rarer ones
    below it stays itself.

    Args:
      rules: `data.roll_up`.
      read: the result of `read_links`.
      counts: the results of `count_patients` for the shards of train.
      min_patients: the patients that an ancestor needs. They are counted over the tokens that it replaces.
    """
    merged = pl.concat(counts).group_by("token", maintain_order=True).agg(pl.col("patients").sum(), "subjects")
    is_rare = pl.col("patients") < min_patients
    frequent = dict(merged.filter(~is_rare).select("token", "patients").iter_rows())
    rare = merged.filter(is_rare).select("token", subject_id="subjects")
    for _ in range(2):  # lists of shards, each with a list of subjects
        rare = rare.explode("subject_id", empty_as_null=False)
    chosen: dict[str, str] = {}
    for links in stages(rules, read, rare["token"].unique(maintain_order=True)):
        left = rare.filter(~pl.col("token").is_in([*chosen]))
        enough = dict(_count_below(links, left).filter(pl.col("patients") >= min_patients).iter_rows())
        given = _assign(links, left, {**frequent, **enough})
        while lost := _find_lost(given, enough, min_patients):
            enough = {name: number for name, number in enough.items() if name not in lost}
            given = _assign(links, left, {**frequent, **enough})
        chosen |= dict(given.select("token", "target").unique().iter_rows())
        frequent = {**frequent, **{name: number for name, number in enough.items() if name in chosen.values()}}
    return {token: target for token, target in chosen.items() if token != target}


def _assign(links: pl.DataFrame, rare: pl.DataFrame, known: Mapping[str, int]) -> pl.DataFrame:
    """Adds the column `target`, the nearest known ancestor, the token itself if known; drops rows without."""
    targets = {name: name for name in known} | nearest_ancestors(links, known)
    return rare.with_columns(target=pl.col("token").replace_strict(targets, default=None)).drop_nulls()


def _find_lost(given: pl.DataFrame, enough: Mapping[str, int], min_patients: int) -> set[str]:
    """Returns ancestors that lose so many tokens to nearer ones that too few patients are left.

    The narrower half comes first, as what it loses may be what a broader one lacks.
    """
    reached = given.group_by("target").agg(pl.col("subject_id").n_unique())
    lost = [name for name, number in reached.iter_rows() if name in enough and number < min_patients]
    return set(sorted(lost, key=lambda name: (enough[name], name))[: (len(lost) + 1) // 2])


def _count_below(links: pl.DataFrame, rare: pl.DataFrame) -> pl.DataFrame:
    """Returns `ancestor, patients`: the number of patients with a rare token that is it or below it."""
    tokens = rare.select("token").unique()
    reached = frontier = tokens.with_columns(ancestor="token")
    while frontier.height:
        above = frontier.join(links, left_on="ancestor", right_on="code").select("token", ancestor="parent").unique()
        frontier = above.join(reached, on=["token", "ancestor"], how="anti")
        reached = pl.concat([reached, frontier])
    return reached.join(rare, on="token").group_by("ancestor").agg(patients=pl.col("subject_id").n_unique())
