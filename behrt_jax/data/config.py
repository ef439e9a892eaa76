"""Configuration of data preparation: validates the config section `data` and fingerprints it with the source files."""

import dataclasses
import hashlib
import json
from pathlib import Path

from behrt_jax.data import events, files, roll_up, sexes

FORMAT = 8  # version of the prepared data; raising it makes every data set be prepared again


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How a MEDS data set becomes tokens; the section `data` of a recipe.

    Attributes:
      path: the MEDS data set.
      prepared_dir: the cache of prepared data, one folder per fingerprint.
      visits: `auto`, `day`, `gap`, or the name of a visit column (see `visits.visit_columns`).
      events_without_visit: whether events that name no visit form one visit per day (`group_by_day`) or are left out
        (`leave_out`).
      visit_gap_hours: a pause longer than this starts a new visit with `visits="gap"`.
      codes_include: codes to keep in the sequence, or shell patterns of them (see `events.matching_codes`).
      codes_exclude: shell patterns of codes to leave out.
      unique_codes_in_visit: whether to keep only a code's first occurrence within a visit, of each continuous value.
      min_patients: codes with fewer train patients become `[UNK]`, or broader codes by `roll_up`.
      value_bins: quantile bins of numeric values; below 2, values are left out.
      row_length: L, tokens per row; also the longest window of one patient.
      use_sep: whether `[SEP]` ends each visit.
      sex_codes: codes that record a sex, in addition to the common forms, as `CODE=F` or `CODE=M` (see `sexes`).
      value_digits: significant digits of bin edges, with at least 10 patients per bin; 0 keeps exact quantiles.
      text_values: whether a text that `min_patients` train patients have is part of its code's token: `CODE//TEXT`.
      unit_table: a table (.csv or .parquet) of units to convert (see `values.read_unit_table`); empty for none.
      roll_up: rules by which a code of too few patients becomes a broader one, in the order of their use: `parents`
        (`parent_codes` of `metadata/codes.parquet`), `icd` (the category of an ICD code), `prefix` (the code without
        its last part) or a table (.csv or .parquet) with the columns `code` and `parent`.
      value_encoding: `bins` (a quantile bin in the token), `continuous` (a number beside it, see `values`) or `none`.
    """

    path: str
    prepared_dir: str
    visits: str
    events_without_visit: str
    visit_gap_hours: float
    codes_include: tuple[str, ...]
    codes_exclude: tuple[str, ...]
    unique_codes_in_visit: bool
    min_patients: int
    value_bins: int
    row_length: int
    use_sep: bool
    sex_codes: tuple[str, ...] = ()  # default for older runs, whose configs lack this key
    value_digits: int = 0  # default for older runs, whose configs lack this key
    value_encoding: str = "bins"  # default for older runs, whose configs lack this key
    text_values: bool = False  # default for older runs, whose configs lack this key
    unit_table: str = ""  # default for older runs, whose configs lack this key
    roll_up: tuple[str, ...] = ()  # default for older runs, whose configs lack this key

    def __post_init__(self):
        for key in ("codes_include", "codes_exclude"):
            if isinstance(getattr(self, key), str):
                raise ValueError(f"data.{key}: found one string; expected a tuple of patterns, such as ('LAB//*',)")
        sexes.parse(self.sex_codes)
        roll_up.check(self.roll_up)
        if self.events_without_visit not in ("group_by_day", "leave_out"):
            value = repr(self.events_without_visit)
            raise ValueError(f"data.events_without_visit: found {value}; expected group_by_day or leave_out")
        if self.value_encoding not in ("none", "bins", "continuous"):
            raise ValueError(f"data.value_encoding: found {self.value_encoding!r}; expected none, bins or continuous")
        bounds = {"visit_gap_hours": 0.0, "min_patients": 1, "value_bins": 0, "row_length": 8, "value_digits": 0}
        for key, minimum in bounds.items():
            if getattr(self, key) < minimum:
                raise ValueError(f"data.{key}: found {getattr(self, key)}; expected {minimum} or more")

    @property
    def num_bins(self) -> int:
        """Quantile bins of numeric values; 0 without."""
        return self.value_bins if self.value_encoding == "bins" and self.value_bins > 1 else 0

    def fingerprint(self, fitted: str = "") -> str:
        """Returns a digest of the source files and of the config keys that affect prepared data.

        With `fitted`, the fingerprint of a given vocabulary, it also covers the file with the parents of codes.

        Raises:
          ValueError: a file cannot be found or read.
        """
        root = Path(self.path)
        reads_parents = fitted or roll_up.PARENTS in self.roll_up
        tables = [events.SPLITS_FILE, *([events.CODES_FILE] if reads_parents else [])]
        source_files = [*events.find_shards(root), *(file for name in tables for file in files.find_table(root / name))]
        sources = [(str(file.relative_to(root)), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files]
        keys = dataclasses.asdict(self)
        for key in ("path", "prepared_dir", "row_length", "use_sep"):
            del keys[key]
        # Prepared data of older versions, which had these choices alone, stay valid.
        if self.value_encoding == "bins":
            del keys["value_encoding"]
        for name in ("text_values", "unit_table", "roll_up"):
            if not keys[name]:
                del keys[name]
        sources += [files.digest(rule, "data.roll_up") for rule in self.roll_up if rule not in roll_up.RULES]
        sources += [files.digest(self.unit_table, "data.unit_table")] if self.unit_table else []
        return hashlib.sha256(json.dumps([FORMAT, sources, keys, fitted], sort_keys=True).encode()).hexdigest()[:16]
