"""Data preparation: turns a MEDS data set into a vocabulary and a TFDS data set of tokens, cached by fingerprint."""

import collections
import dataclasses
import itertools
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from behrt_jax.data import checksums, dataset, events, locks, roll_up, sexes, tokenize, values, vocabulary
from behrt_jax.data.config import DataConfig
from behrt_jax.data.tokenize import ShardStats, gather_shard_stats

logger = logging.getLogger(__name__)
_SPLITS_CURES = {  # keyed by (splits come from a hash, splits come from folders)
    (1, 0): "add patients or",
    (0, 1): "splits are those of the folders under data/; add patients, or write",
    (0, 0): "correct",
}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Prepared data: its folder, its vocabulary and a report of counts."""

    folder: Path
    vocabulary: vocabulary.Vocabulary
    report: dict


def prepare(
    config: DataConfig,
    fitted: vocabulary.Vocabulary | None = None,
    splits: tuple[str, ...] = events.SPLITS,
    add_codes: bool = False,
) -> Prepared:
    """Prepares a data set, or loads it from the cache.

    Args:
      config: the data section of a recipe.
      fitted: the vocabulary of a trained model, to apply it to other data; if None, a vocabulary is fitted on train.
        Codes that it does not know become their nearest known ancestor, or else `[UNK]`.
      splits: splits that must have patients; others may be empty if `fitted` is given.
      add_codes: whether to append codes of train that `fitted` does not know, as if it were fitted on them.

    Returns:
      The prepared data; `report` counts what was read and left out, and lists patterns that match no code.

    Raises:
      ValueError: the data set violates the standard, no event is left, or the vocabulary knows none of its codes;
        nothing is written then.
    """
    vocab_fingerprint = fitted.fingerprint + "+" * add_codes if fitted else ""
    name = f"{Path(config.path).resolve().name}-{config.fingerprint(vocab_fingerprint)}"
    folder = Path(config.prepared_dir) / name
    prepared = _load(folder)
    if prepared is None:
        try:
            with locks.hold(folder.parent / f".{name}.lock", f"{folder} is prepared"):
                prepared = _load(folder) or _prepare(config, fitted, splits, folder, add_codes)
        except OSError as error:
            raise ValueError(
                f"{folder.parent}: cannot write the prepared data ({error}); free space there, or name a folder that "
                "can be written in data.prepared_dir"
            ) from error
    return prepared


def _load(folder: Path) -> Prepared | None:
    """Loads the result of `_prepare`; None if it is missing, incomplete or damaged."""
    if checksums.find_damage(folder):
        return None
    try:
        report = json.loads((folder / "report.json").read_text())
        return Prepared(folder, vocabulary.Vocabulary.load(folder / "vocabulary.json"), report)
    except (OSError, ValueError):
        return None


def _prepare(config: DataConfig, fitted, needed: tuple[str, ...], folder: Path, add_codes) -> Prepared:
    """Reads the data set, then writes `folder` atomically."""
    if damage := checksums.find_damage(folder):
        logger.warning(f"{folder}: {damage}; preparing it again")
    counts: collections.Counter = collections.Counter()
    base_vocab = vocab = fitted or vocabulary.EMPTY
    fit, known_tokens = fitted is None or add_codes, frozenset(base_vocab.ids)
    logger.info(f"reading {config.path}")
    stats = gather_shard_stats(config, counts, fit)
    links = roll_up.read_links(config.path, config.roll_up) if base_vocab.codes or config.roll_up else {}
    texts = values.choose_texts(stats.texts, config.min_patients) | known_tokens

    def tokenized(split: str, edges, scales, counts=None, parents=None) -> Iterator[pl.DataFrame]:
        how = values.FittedValues(edges, scales, texts)
        rest = how, stats.splits.filter(split=split), stats.visits_named, counts, parents, known_tokens
        return (tokenize.tokenize(shard, config, *rest) for shard in stats.shards[split])

    needed = needed if fitted else tuple(dict.fromkeys(("train", *needed)))
    for split in needed:
        if not stats.shards[split]:
            raise ValueError(
                f"{config.path}: split '{split}' has no patient; expected some in each of {', '.join(needed)}; "
                f"{_SPLITS_CURES[counts['splits_made'], counts['splits_of_folders']]} {events.SPLITS_FILE}"
            )
    if fit:
        logger.info("fitting the vocabulary on the train split")
        floor = config.min_patients, config.value_digits
        edges = vocabulary.fit_value_edges(stats.samples, config.num_bins, *floor)
        scales = values.fit_scales(stats.samples, *floor) if config.value_encoding == "continuous" else {}
        edges = {code: each for code, each in edges.items() if code not in base_vocab.ids} | base_vocab.value_edges
        scales = {code: each for code, each in scales.items() if code not in base_vocab.ids} | base_vocab.value_scales
        broader = {}
        if config.roll_up and fitted is None:
            patients = [roll_up.count_patients(each, config.min_patients) for each in tokenized("train", edges, scales)]
            broader = roll_up.choose_ancestors(config.roll_up, links, patients, config.min_patients)
        parts = [vocabulary.count_tokens(tokens) for tokens in tokenized("train", edges, scales, parents=broader)]
        vocab = vocabulary.fit_vocabulary(parts, edges, config.min_patients, base_vocab, scales)
    parents = _find_parents(config, links, vocab, stats.codes) if links else {}
    if add_codes:
        counts["codes_added"] = len(vocab) - len(base_vocab)
    logger.info("writing the prepared data")
    examples = {}
    for split in events.SPLITS:
        tables = tokenized(split, vocab.value_edges, vocab.value_scales, counts, parents)
        split_examples = _examples(split, tables, vocab, counts)
        if (first := next(split_examples, None)) is not None:
            examples[split] = itertools.chain([first], split_examples)
        elif split in needed:
            raise ValueError(
                f"{config.path}: no patient of split '{split}' has a code left in the sequence; check "
                "data.codes_include and data.codes_exclude"
            )
    return Prepared(folder, vocab, _write(folder, config, examples, stats, vocab, counts))


def _find_parents(config: DataConfig, links, vocab: vocabulary.Vocabulary, codes: frozenset[str]) -> dict[str, str]:
    """Maps codes of the data, and their bins, to their nearest known ancestors where the vocabulary lacks them."""
    bins = (f"{code}//Q{place}" for code, edges in vocab.value_edges.items() for place in range(1, len(edges) + 2))
    return roll_up.find_ancestors(config.roll_up, links, sorted({*codes, *bins}), vocab.count_of)


def _write(folder: Path, config: DataConfig, examples: dict[str, Iterator], stats: ShardStats, fitted, counts) -> dict:
    """Writes prepared data to a temporary folder, renames it to `folder`, and returns the report."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        dataset.write(scratch, examples, with_values=config.value_encoding == "continuous")
        kinds = ("patients", "patients_known", "tokens", "backed_off", "unknown")
        counts.update({f"{kind}/{split}": 0 for kind in kinds for split in events.SPLITS})
        num_tokens, num_unknown = (sum(counts[f"{kind}/{split}"] for split in events.SPLITS) for kind in kinds[2::2])
        if 0 < num_tokens == num_unknown:
            raise ValueError(
                f"{config.path}: the vocabulary knows the code of none of the {num_tokens:,} events that are left; "
                "expected codes as the model was trained on; name parents that it knows in the column parent_codes of "
                f"{events.CODES_FILE}, fine-tune with add_codes=True, or train from scratch"
            )
        if counts["splits_made"]:
            stats.splits.write_parquet(scratch / "subject_splits.parquet")
        fitted.save(scratch / "vocabulary.json")
        counts["codes"] = len(fitted.codes)
        report = {**dict(sorted(counts.items())), "unmatched_patterns": stats.unmatched}
        (scratch / "report.json").write_text(json.dumps(report, indent=1))
        checksums.record(scratch)
        if _load(folder) is None:  # no other process was faster
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return report


def _examples(split: str, tables: Iterator[pl.DataFrame], fitted, counts) -> Iterator[tuple[int, dict]]:
    """Yields the subject id and example of each patient from tables of tokens of a split, and updates `counts`."""
    records_sex = sexes.sex_tokens(fitted.tokens) > 0
    for tokens in tables:
        tokens = tokens.with_columns(code_id=fitted.encode(tokens["token"]))
        counts[f"tokens/{split}"] += tokens.height
        counts[f"backed_off/{split}"] += tokens["backed_off"].sum()
        counts[f"unknown/{split}"] += int((tokens["code_id"] == vocabulary.UNK).sum())
        for example in tokenize.split_patients(tokens):
            counts[f"patients/{split}"] += 1
            counts["patients_without_sex"] += not records_sex[example["tokens"][:, 0]].any()
            counts[f"patients_known/{split}"] += vocabulary.UNK not in example["tokens"][:, 0]
            yield example["subject_id"], example


def log_coverage(report: dict, split: str) -> None:
    """Logs the share of a split's (or `all`) events and patients that the vocabulary of a trained model knows."""
    splits = events.SPLITS if split == "all" else (split,)
    kinds = ("tokens", "backed_off", "unknown", "patients", "patients_known")
    total, backed_off, unknown, patients, whole = (sum(report[f"{kind}/{part}"] for part in splits) for kind in kinds)
    known = total - backed_off - unknown
    suffix = f"; {report['codes_added']:,} codes were added to it" if "codes_added" in report else ""
    logger.log(
        logging.WARNING if 2 * unknown > total else logging.INFO,
        f"coverage of {split}: the vocabulary knows {known / total:.2%} of events by their own code and "
        f"{backed_off / total:.2%} by a parent code; {unknown / total:.2%} are [UNK]; "
        f"it knows every event of {whole / patients:.1%} of patients{suffix}",
    )
