"""Prepared patients, stored as a tensorflow-datasets data set (array_record files, no TensorFlow) and in memory."""

import contextlib
import dataclasses
import io
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from behrt_jax.data.hashing import hash_integers

TOKEN_COLUMNS = ("code", "visit", "minutes", "microseconds")
TOKEN_FIELDS = ("codes", "visits", "minutes", "microseconds")  # of `Patients`, in the same order
MICROSECONDS = 60_000_000  # per minute


class PatientTokens(tfds.core.GeneratorBasedBuilder):
    """TFDS builder with one example per patient: the fields of `Patients`, with tokens as rows of `TOKEN_COLUMNS`."""

    VERSION = tfds.core.Version("1.0.0")
    examples: dict[str, Iterator[tuple[int, dict]]] = {}

    num_columns = len(TOKEN_COLUMNS)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "subject_id": np.int64,
            "has_birth": np.bool_,
            "origin": np.int32,
            "tokens": tfds.features.Tensor(shape=(None, self.num_columns), dtype=np.int32, encoding="bytes"),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        del dl_manager
        return self.examples

    def _generate_examples(self):
        raise NotImplementedError("each split brings its own generator")


class PatientTokensWithValues(PatientTokens):
    """TFDS builder whose tokens have one more column: the bits of the float32 value, NaN where a token has none."""

    num_columns = len(TOKEN_COLUMNS) + 1


def write(folder: Path, examples: dict[str, Iterator[tuple[int, dict]]], with_values: bool = False) -> None:
    """Writes the examples of each split (subject ids with examples for `PatientTokens`, one or more) below a folder.

    `with_values`, they are examples for `PatientTokensWithValues`.

    Raises:
      OSError: the files cannot be written.
    """
    kind = PatientTokensWithValues if with_values else PatientTokens
    builder = kind(data_dir=folder, file_format="array_record")
    builder.examples = examples
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except RuntimeError as error:  # raised by array_record when the disk is full
        raise OSError(str(error)) from error
    finally:
        tfds.enable_progress_bar()
    shutil.rmtree(folder / "downloads", ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Patients:
    """The patients of one split, as flat token arrays with offsets (CSR).

    Attributes:
      subject_ids: (N,) int64, ascending.
      has_birth: (N,) bool; without a known birth, minutes count from the first event and ages are unknown.
      origins: (N,) int32; the zero of each patient's minutes, in minutes since 2000-01-01T00:00.
      offsets: (N + 1,) int64; patient i has the tokens `offsets[i]:offsets[i + 1]`.
      codes, visits, minutes, microseconds: (T,) int32; each patient's static tokens come first, with visit -1. Times
        are whole minutes since birth and the microseconds beyond them (0 to 59,999,999). Tokens of one visit that share
        a time have no order.
      values: (T,) float32 robustly scaled values (see `values.fit_scales`), NaN where a token has none; None unless
        `data.value_encoding` is `continuous`.
    """

    subject_ids: np.ndarray
    has_birth: np.ndarray
    origins: np.ndarray
    offsets: np.ndarray
    codes: np.ndarray
    visits: np.ndarray
    minutes: np.ndarray
    microseconds: np.ndarray
    values: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.subject_ids)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns of tokens, (T,) each, by name: `TOKEN_FIELDS`, and `values` if there are any."""
        columns = {name: getattr(self, name) for name in TOKEN_FIELDS}
        return columns if self.values is None else {**columns, "values": self.values}

    @property
    def owners(self) -> np.ndarray:
        """(T,) the index of each token's patient."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @property
    def times(self) -> np.ndarray:
        """(T,) int64 recording times in microseconds since birth, for comparisons; -1 for static tokens."""
        times = self.minutes.astype(np.int64) * MICROSECONDS + self.microseconds
        return np.where(self.visits < 0, -1, times)

    @property
    def last_times(self) -> np.ndarray:
        """(N,) int64 time of each patient's latest token, which may not be the last one; -1 if no token is timed."""
        latest = np.full(len(self), -1, np.int64)
        np.maximum.at(latest, self.owners, self.times)
        return latest


def read(folder: Path, split: str) -> Patients:
    """Reads a split of prepared data into memory, or `all` splits together, by ascending subject id.

    Raises:
      ValueError: the split does not exist, or its files are damaged.
    """
    with_values = (folder / PatientTokensWithValues.name).is_dir()
    kind = PatientTokensWithValues if with_values else PatientTokens
    builder = kind(data_dir=folder, file_format="array_record")
    splits = list(builder.info.splits)
    if split not in (*splits, "all"):
        raise ValueError(
            f"{folder}: split '{split}' is not in the prepared data (found {', '.join(splits) or 'none'}); use one of "
            "these, or other data"
        )
    try:
        sources = [builder.as_data_source(name) for name in (splits if split == "all" else [split])]
        examples = sorted(itertools.chain(*sources), key=lambda example: example["subject_id"])
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"{folder}: split '{split}' of the prepared data is damaged ({type(error).__name__}); remove the "
            "folder to have the data prepared again"
        ) from error
    tokens = np.concatenate([example["tokens"] for example in examples])
    return Patients(
        subject_ids=np.array([example["subject_id"] for example in examples], np.int64),
        has_birth=np.array([example["has_birth"] for example in examples], bool),
        origins=np.array([example["origin"] for example in examples], np.int32),
        offsets=np.cumsum([0, *(len(example["tokens"]) for example in examples)]),
        **{name: np.ascontiguousarray(tokens[:, column]) for column, name in enumerate(TOKEN_FIELDS)},
        values=np.ascontiguousarray(tokens[:, -1]).view(np.float32) if with_values else None,
    )


def sample(patients: Patients, max_patients: int) -> Patients:
    """Returns the `max_patients` patients with the lowest hashes of their ids; all if there are no more, or for 0."""
    if not 0 < max_patients < len(patients):
        return patients
    chosen = np.zeros(len(patients), bool)
    chosen[np.argsort(hash_integers(patients.subject_ids), kind="stable")[:max_patients]] = True
    return take(patients, chosen)


def take(patients: Patients, chosen: np.ndarray) -> Patients:
    """Returns the patients or histories where `chosen`, (N,) bool, is True."""
    sizes = np.diff(patients.offsets)
    return gather(patients, chosen, sizes[chosen], np.repeat(chosen, sizes))


def gather(patients: Patients, rows: np.ndarray | slice, sizes: np.ndarray, tokens: np.ndarray | slice) -> Patients:
    """Returns a history for each of the M patients in `rows`, with the next of the (T,) `tokens`, (M,) `sizes` each."""
    subjects = {name: getattr(patients, name)[rows] for name in ("subject_ids", "has_birth", "origins")}
    columns = {name: column[tokens] for name, column in patients.columns.items()}
    return Patients(**subjects, offsets=np.append(0, np.cumsum(sizes)), **columns)
