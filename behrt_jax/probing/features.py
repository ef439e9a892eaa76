"""Feature blocks of histories for few-label probing, scaled without labels by the patients of train.

The scaling uses all patients of train, each at a random time of the record: it needs no labels, so it is not estimated
from the few labelled patients.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse

from behrt_jax.data import histories as data_histories
from behrt_jax.data import windows
from behrt_jax.data.code_counts import static_tokens, visit_codes
from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.embeddings.patients import embed
from behrt_jax.regression.ridge import Blocks
from behrt_jax.training import workdir
from behrt_jax.training.recipe import PretrainingRecipe

DEMOGRAPHICS, COUNTS, EMBEDDINGS, RANDOM = "demographics", "counts", "embeddings", "random"
SINCE = np.datetime64("2000-01-01", "m")
TIME_SALT = 7
TINY = 1e-6


class Run(NamedTuple):
    """A pre-trained run: its recipe, model, parameters by block, and tokens by id."""

    recipe: PretrainingRecipe
    model: Any
    params: dict[str, Any]
    tokens: tuple[str, ...]


class Reader:
    """Computes scaled features of histories with a pre-trained run; caches embeddings in a folder, as they are slow."""

    def __init__(self, found: workdir.LoadedRun[PretrainingRecipe], train: Patients, folder: Path, random: bool = True):
        """Initialises the reader.

        Args:
          found: the pre-trained run.
          train: all patients of train, for the scaling of features.
          folder: cache of embeddings; a file is named by a digest of everything that it depends on.
          random: whether to add the embeddings of a random encoder of the same recipe.
        """
        params = {EMBEDDINGS: found.params}
        if random:
            params[RANDOM] = workdir.initialize(found.model, jax.random.key(found.recipe.seed + 1))
        self.run = Run(found.recipe, found.model, params, found.vocabulary.tokens)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
        self.digest = workdir.digest(leaves, found.vocabulary.tokens, found.recipe.data, found.recipe.model)
        self.folder, self.scaling = folder, None
        self.unlabeled = train

    def blocks(self, histories: Patients, times: np.ndarray) -> Blocks:
        """Computes the scaled features of M histories at their (M,) prediction times."""
        if self.scaling is None:
            self.scaling = fit_scaling(self._read(*at_random_times(self.unlabeled)))
        return self.scaling(self._read(histories, times))

    def _read(self, histories: Patients, times: np.ndarray) -> Blocks:
        blocks = describe(self.run, histories, times)
        file = self.folder / f"{workdir.digest(self.digest, workdir.digest_patients(histories))[:24]}.npz"
        if file.exists():
            with np.load(file, allow_pickle=False) as arrays:
                return blocks | dict(arrays)
        embeddings = embed_histories(self.run, histories)
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(".partial.npz")
        np.savez_compressed(scratch, allow_pickle=False, **embeddings)
        scratch.replace(file)
        return blocks | embeddings


class Scaling(NamedTuple):
    """By block, what is subtracted from features and what they are then multiplied by, (D,) each."""

    centre: dict[str, np.ndarray]
    factor: dict[str, np.ndarray]

    def __call__(self, features: Blocks) -> Blocks:
        """Scales features."""
        return {name: (values - self.centre[name]) * self.factor[name] for name, values in features.items()}


def embed_histories(run: Run, histories: Patients) -> Blocks:
    """Embeds M histories with each of a run's parameters: the mean hidden state of the newest tokens, (M, D)."""
    rows = data_histories.newest_visits(histories, run.recipe.data.row_length)
    size = run.recipe.evaluation.batch_size
    return {name: embed(run.recipe.data, run.model, params, rows, size)["mean"] for name, params in run.params.items()}


def describe(run: Run, histories: Patients, times: np.ndarray) -> Blocks:
    """Computes features of M histories at their prediction times: `demographics`, and `counts`, log counts of codes."""
    return {DEMOGRAPHICS: demographics(histories, times, run.tokens), COUNTS: count_codes(run, histories)}


def ages(histories: Patients, times: np.ndarray) -> np.ndarray:
    """Returns the age at each prediction time, (M,) years; the mean of the others where birth is unknown."""
    years = data_histories.ages_at(histories, times)
    known = ~np.isnan(years)
    return np.where(known, years, years[known].mean() if known.any() else 0.0)


def demographics(histories: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> np.ndarray:
    """Returns age in years, followed by a piecewise linear basis of age and by sex, with values between 0 and 1."""
    return np.column_stack([ages(histories, times), data_histories.covariates_at(histories, times, tokens)])


def count_codes(run: Run, histories: Patients) -> np.ndarray:
    """Computes (M, V) log counts of codes in histories, with 1 for static tokens."""
    index = windows.index_visits(histories, run.recipe.data.row_length, run.recipe.data.use_sep)
    codes = visit_codes(histories, index, len(run.tokens)).astype(np.float32)
    sides = np.ones(codes.shape[0], np.float32), index.owners, np.arange(codes.shape[0] + 1)
    owners = scipy.sparse.csr_array(sides, shape=(codes.shape[0], len(histories)))
    return (owners.T.tocsr() @ codes).log1p().toarray() + static_tokens(histories, len(run.tokens)).toarray()


def fit_scaling(features: Blocks) -> Scaling:
    """Fits a scaling to features of all patients of train, without labels.

    Age gets a variance of 1. Each other block gets a total variance of 1, but its features keep their proportions:
    dividing each code by its standard deviation would make a rare code as large as a common one. The other demographic
    features are between 0 and 1 and are multiplied by 0.25, as they seldom add much to a linear effect of age.
    """
    centre = {name: values.mean(axis=0) for name, values in features.items()}
    factor = {}
    for name, values in features.items():
        deviation = values.std(axis=0)
        factor[name] = (deviation > TINY) / np.sqrt(max((deviation**2).sum(), TINY))
    is_varying = features[DEMOGRAPHICS].std(axis=0) > TINY
    age = max(features[DEMOGRAPHICS][:, 0].std(), TINY)
    factor[DEMOGRAPHICS] = np.where(np.arange(len(is_varying)) == 0, 1 / age, 0.25) * is_varying
    return Scaling(centre, factor)


def at_random_times(patients: Patients) -> tuple[Patients, np.ndarray]:
    """Truncates each history at a random time, set by a hash of the id; returns M histories and (M,) times."""
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
