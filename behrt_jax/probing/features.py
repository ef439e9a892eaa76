"""What few labels are fitted to: blocks of features of histories, scaled by the patients of train without their labels.

All of train is scaled by, each patient at a random time of the record: how features spread is known of everybody, so
the few who are labelled need not say it.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
from ml_collections import ConfigDict

from behrt_jax.data import histories as data_histories
from behrt_jax.data import windows
from behrt_jax.data.code_counts import static_tokens, visit_codes
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.embeddings.patients import embed
from behrt_jax.regression.ridge import Blocks
from behrt_jax.training import workdir

DEMOGRAPHICS, COUNTS, EMBEDDINGS, RANDOM = "demographics", "counts", "embeddings", "random"
SINCE = np.datetime64("2000-01-01", "m")
TIME_SALT = 7
TINY = 1e-6


class Run(NamedTuple):
    """A pre-trained run that reads histories: its recipe, model, parameters by block, and tokens by id."""

    config: ConfigDict
    model: Any
    params: dict[str, Any]
    tokens: tuple[str, ...]


class Reader:
    """Reads scaled features of histories by a pre-trained run, and keeps them in a folder, as embedding takes long."""

    def __init__(self, found: workdir.Loaded, train: Patients, folder: Path, random: bool = True):
        """Prepares to read.

        Args:
          found: the pre-trained run.
          train: all patients of train, by whom features are scaled.
          folder: where features are kept, each file named by a digest of all that it rests on.
          random: whether to read a random encoder too, of the same recipe.
        """
        params = {EMBEDDINGS: found.params}
        if random:
            params[RANDOM] = workdir.initialize(found.model, jax.random.key(found.config.seed + 1))
        self.run = Run(found.config, found.model, params, found.vocabulary.tokens)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        self.digest = workdir.digest(leaves, found.vocabulary.tokens, str(found.config.data), str(found.config.model))
        self.folder, self.scaling = folder, None
        self.unlabeled = train

    def blocks(self, histories: Patients, times: np.ndarray) -> Blocks:
        """Returns the scaled features of M histories at their (M,) prediction times."""
        if self.scaling is None:
            self.scaling = fit_scaling(self._read(*at_random_times(self.unlabeled)))
        return self.scaling(self._read(histories, times))

    def _read(self, histories: Patients, times: np.ndarray) -> Blocks:
        described = describe(self.run, histories, times)
        file = self.folder / f"{workdir.digest(self.digest, workdir.digest_patients(histories))[:24]}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as stored:
                return described | dict(stored)
        embedded = embed_histories(self.run, histories)
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(".partial.npz")
        np.savez_compressed(scratch, allow_pickle=False, **embedded)
        scratch.replace(file)
        return described | embedded


class Scaling(NamedTuple):
    """By block, what is taken off features and what they are then multiplied by, (D,) each."""

    centre: dict[str, np.ndarray]
    factor: dict[str, np.ndarray]

    def __call__(self, features: Blocks) -> Blocks:
        """Returns scaled features."""
        return {name: (values - self.centre[name]) * self.factor[name] for name, values in features.items()}


def embed_histories(run: Run, histories: Patients) -> Blocks:
    """Embeds M histories with each of a run's parameters: the mean of the states of the newest tokens, (M, D)."""
    rows = data_histories.newest_visits(histories, run.config.data.row_length)
    return {name: embed(run.config, run.model, params, rows)["mean"] for name, params in run.params.items()}


def describe(run: Run, histories: Patients, times: np.ndarray) -> Blocks:
    """Describes M histories at their prediction times: `demographics`, and `counts`, log counts of codes."""
    return {DEMOGRAPHICS: demographics(histories, times, run.tokens), COUNTS: count_codes(run, histories)}


def ages(histories: Patients, times: np.ndarray) -> np.ndarray:
    """Returns the age at each prediction time, (M,) years; the mean of the others where birth is unknown."""
    found = data_histories.ages_at(histories, times)
    known = ~np.isnan(found)
    return np.where(known, found, found[known].mean() if known.any() else 0.0)


def demographics(histories: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> np.ndarray:
    """Returns age in years, then a piecewise linear basis of it and sex, as shares between 0 and 1."""
    return np.column_stack([ages(histories, times), data_histories.covariates_at(histories, times, tokens)])


def count_codes(run: Run, histories: Patients) -> np.ndarray:
    """Returns the (M, V) log counts of codes in histories, and which static tokens they have."""
    index = windows.index_visits(histories, run.config.data.row_length, run.config.data.use_sep)
    codes = visit_codes(histories, index, len(run.tokens)).astype(np.float32)
    sides = np.ones(codes.shape[0], np.float32), index.owners, np.arange(codes.shape[0] + 1)
    owners = scipy.sparse.csr_array(sides, shape=(codes.shape[0], len(histories)))
    return (owners.T.tocsr() @ codes).log1p().toarray() + static_tokens(histories, len(run.tokens)).toarray()


def fit_scaling(features: Blocks) -> Scaling:
    """Fits a scaling to features of all patients of train, without labels.

    Age gets a variance of 1. Each other block gets a total variance of 1, but its features keep their proportions: a
    rare code that was divided by its own deviation would be as large as a common one. Of age and sex the rest are
    shares, which count a quarter: what they add to a straight line in age is seldom much.
    """
    centre = {name: values.mean(axis=0) for name, values in features.items()}
    factor = {}
    for name, values in features.items():
        deviation = values.std(axis=0)
        factor[name] = (deviation > TINY) / np.sqrt(max((deviation**2).sum(), TINY))
    rest = features[DEMOGRAPHICS].std(axis=0) > TINY
    age = max(features[DEMOGRAPHICS][:, 0].std(), TINY)
    factor[DEMOGRAPHICS] = np.where(np.arange(len(rest)) == 0, 1 / age, 0.25) * rest
    return Scaling(centre, factor)


def at_random_times(patients: Patients) -> tuple[Patients, np.ndarray]:
    """Cuts each patient's history off at a random time of the record, a function of the id; returns (M,) times too."""
    timed = patients.visits >= 0
    first, last = np.full(len(patients), np.iinfo(np.int64).max), np.zeros(len(patients), np.int64)
    np.minimum.at(first, patients.owners[timed], patients.minutes[timed])
    np.maximum.at(last, patients.owners[timed], patients.minutes[timed])
    first = np.minimum(first, last)
    share = hash_fraction(TIME_SALT, patients.subject_ids)
    minutes = patients.origins + first + 1 + np.floor(share * (last - first)).astype(np.int64)
    times = (SINCE + minutes.astype("timedelta64[m]")).astype("datetime64[us]")
    histories, kept, _ = data_histories.histories_at(patients, patients.subject_ids, times)
    return histories, times[kept]
