"""Sparse regression on code counts as a head input beside the embedding (wide and deep, Cheng et al. 2016).

Mean pooling over tokens cannot count, and few labels do not teach an encoder to; a sparse regression on whole histories
can. It is fitted a second time with products of its strongest features. For train, log risks come from regressions
fitted without the patient (stacking, Wolpert 1992), so that a head learns how much to trust them.
"""

import functools
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from behrt_jax.data.dataset import Patients
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.metrics import survival
from behrt_jax.regression import cox
from behrt_jax.regression.outcome_features import FREE, MIN_PATIENTS, FeatureScaler, fit_scaler

logger = logging.getLogger(__name__)
NET_PENALTIES = np.geomspace(0.9, 0.003, 24)  # of the elastic net, relative to the smallest that leaves no weight
NET_RATIOS = (0.5, 0.9)  # L1 shares, for sparse weights
LASSO_PENALTIES = (0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)  # of logistic regression, relative likewise
MAX_ROWS = 20_000  # of train, sampled at random, as the elastic net needs a dense matrix
STRONGEST = 40  # features whose pairwise products become inputs
CLIP = 3.0  # in standard deviations, of features in products
TAIL = 0.005  # share of train at either end whose log risks are clipped
FOLDS, FOLD_SALT = 5, 3


class Target(NamedTuple):
    """One outcome of N histories.

    Attributes:
      known: (N,) bool, whether the outcome is known.
      happened: (N,) bool.
      days: (N,) to the event or the end of follow-up; None for outcomes without a time.
    """

    known: np.ndarray
    happened: np.ndarray
    days: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Target":
        """Selects rows."""
        return Target(self.known[rows], self.happened[rows], None if self.days is None else self.days[rows])


class Weights(NamedTuple):
    """A linear function of D standardised features and I products of two, clipped at the extremes of train.

    Attributes:
      pairs: (I, 2) indices of the features in each product.
      pair_mean, pair_deviation: (I,) of the products.
      weights: (D + I,).
      limits: (2,) the lowest and the highest log risk returned.
    """

    pairs: np.ndarray
    pair_mean: np.ndarray
    pair_deviation: np.ndarray
    weights: np.ndarray
    limits: np.ndarray

    def log_risk(self, singles: np.ndarray) -> np.ndarray:
        """Computes the (N,) log risk, of mean 0 in train, from (N, D) standardised features."""
        products = (_multiply(singles, self.pairs) - self.pair_mean) / self.pair_deviation
        return np.clip(np.concatenate([singles, products], axis=1) @ self.weights, *self.limits)


class CodeRegression(NamedTuple):
    """Regressions of K outcomes on the same features.

    Attributes:
      encoder: computes features of histories.
      centre, scale: (D,) offsets subtracted from the features, and divisors applied afterwards.
      members: for each outcome, 1 + FOLDS regressions: one on all of train, then one without each fold's patients.
    """

    encoder: FeatureScaler
    centre: np.ndarray
    scale: np.ndarray
    members: list[list[Weights]]

    def log_risks(
        self, patients: Patients, times: np.ndarray, tokens: tuple[str, ...], is_train: bool = False
    ) -> np.ndarray:
        """Computes the (N, K) float32 log risks of N histories at (N,) datetime64 times.

        The histories are from `histories.histories_at`, without prediction tokens. For train (`is_train`), the members
        fitted without the patient compute them.
        """
        table = self.encoder.encode(patients, times, tokens).joined()
        member_ids = 1 + fold_of(patients.subject_ids) if is_train else np.zeros(len(times), int)
        risks = np.zeros((len(times), len(self.members)), np.float32)
        for member in np.unique(member_ids):
            rows = np.flatnonzero(member_ids == member)
            singles = (table[rows].toarray() - self.centre) / self.scale
            for outcome, regressions in enumerate(self.members):
                risks[rows, outcome] = regressions[member].log_risk(singles)
        return risks

    def save(self, file: Path) -> None:
        """Writes it to an `.npz` file without pickled objects."""
        arrays = {f"encoder/{name}": values for name, values in self.encoder._asdict().items()}
        for outcome, regressions in enumerate(self.members):
            for member, weights in enumerate(regressions):
                arrays |= {f"{outcome}/{member}/{name}": values for name, values in weights._asdict().items()}
        np.savez_compressed(file, allow_pickle=False, centre=self.centre, scale=self.scale, **arrays)


def load(file: Path) -> CodeRegression:
    """Reads a file of `CodeRegression.save`; a ValueError if it is missing or no such file."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            count = len({name.partition("/")[0] for name in arrays if name[0].isdigit()})

            def read(kind, folder):
                return kind(*(arrays[f"{folder}/{name}"] for name in kind._fields if name != "splines"))

            members = [[read(Weights, f"{k}/{member}") for member in range(1 + FOLDS)] for k in range(count)]
            splines = bool(arrays["encoder/splines"]) if "encoder/splines" in arrays else False  # not in older files
            encoder = read(FeatureScaler, "encoder")._replace(splines=splines)
            return CodeRegression(encoder, arrays["centre"], arrays["scale"], members)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{file}: not a regression that experiments.finetune wrote ({error}); run it anew") from error


def fit(
    train: tuple[Patients, np.ndarray],
    tuning: tuple[Patients, np.ndarray],
    targets: list[tuple[Target, Target]],
    tokens: tuple[str, ...],
) -> CodeRegression:
    """Fits the regressions: elastic net Cox for times to event, logistic lasso for other outcomes.

    Args:
      train: histories, as in `CodeRegression.log_risks`, and prediction times; a random sample if more than `MAX_ROWS`.
      tuning: likewise; selects the penalties by Harrell's C or AUROC, which the fits without a fold then share.
      targets: for each outcome, its target in train and in tuning.
      tokens: of the vocabulary, by id.
    """
    encoder = fit_scaler(*train, tokens)
    if not len(encoder.varied) + len(encoder.used):
        raise ValueError(
            "head.features: found no age, sex or code that tells patients of train apart; expected some, each of "
            f"{MIN_PATIENTS} patients or more; leave out regression"
        )
    rows, num_basic = sample(len(train[1]), MAX_ROWS), len(encoder.varied)
    singles = encoder.encode(*train, tokens).joined()[rows].toarray()
    centre, scale = singles.mean(axis=0), np.maximum(singles.std(axis=0), 1e-6)
    scale[:num_basic] = FREE  # the encoder has already scaled age and sex together
    singles = (singles - centre) / scale
    tuning_inputs = (encoder.encode(*tuning, tokens).joined().toarray() - centre) / scale
    folds, members = fold_of(train[0].subject_ids)[rows], []
    for number, (target, tuning_target) in enumerate(targets, start=1):
        target = target.take(rows)
        judge = functools.partial(
            _discordance, tuning_target.take(tuning_target.known), tuning_inputs[tuning_target.known]
        )
        regression, settings = _fit(singles[target.known], num_basic, target.take(target.known), judge)
        members.append([regression])
        for fold in range(FOLDS):
            kept = target.known & (folds != fold)
            enough = 0 < target.happened[kept].sum() < kept.sum() + (target.days is not None)
            args = (singles[kept], num_basic, target.take(kept), judge, settings)
            members[-1].append(_fit(*args)[0] if enough else regression)
        summary = f"{np.count_nonzero(regression.weights):,} of {len(regression.weights):,} features and products"
        note = ", at the edge of the penalties tried" if any(map(_is_last, settings)) else ""
        logger.info(
            f"regression on codes {number} of {len(targets)}: {summary}{note}, {1 - judge(regression):.3f} on tuning"
        )
    return CodeRegression(encoder, centre, scale, members)


def fold_of(subject_ids: np.ndarray) -> np.ndarray:
    """Returns the fold of each subject, a function of its id alone."""
    return np.floor(FOLDS * hash_fraction(FOLD_SALT, subject_ids)).astype(int)


def sample(count: int, most: int) -> np.ndarray:
    """Samples the indices of at most `most` of `count` rows at random, in ascending order."""
    return np.arange(count) if count <= most else np.sort(np.random.default_rng(0).choice(count, most, replace=False))


def _fit(singles, num_basic: int, target, judge, chosen=(None, None)) -> tuple[Weights, tuple]:
    """Fits features, then features and products, each with the setting in `chosen` or the best one by `judge`."""
    no_limits = np.array([-np.inf, np.inf])
    empty = Weights(np.zeros((0, 2), int), np.zeros(0), np.ones(0), np.zeros(singles.shape[1]), no_limits)
    main_effects, first = _choose(empty, singles, num_basic, target, judge, chosen[0])
    num_strongest = min(STRONGEST, np.count_nonzero(main_effects.weights))
    strongest = np.argsort(-np.abs(main_effects.weights), kind="stable")[:num_strongest]
    pairs = np.sort(strongest)[np.stack(np.triu_indices(len(strongest), 1), axis=1)]
    products = _multiply(singles, pairs)
    mean, deviation = products.mean(axis=0), products.std(axis=0)
    kept = deviation > 1e-6
    template = empty._replace(pairs=pairs[kept], pair_mean=mean[kept], pair_deviation=deviation[kept])
    inputs = np.concatenate([singles, (products[:, kept] - mean[kept]) / deviation[kept]], axis=1)
    all_effects, second = _choose(template, inputs, num_basic, target, judge, chosen[1])
    # Otherwise a few outlying histories would determine how much a head can trust all of them.
    return all_effects._replace(limits=np.quantile(all_effects.log_risk(singles), [TAIL, 1 - TAIL])), (first, second)


def _choose(like: Weights, inputs: np.ndarray, num_basic: int, target: Target, judge, setting) -> tuple[Weights, Any]:
    """Returns the weights of a setting, or of the setting with the lowest loss, and that setting."""
    scales = np.ones(inputs.shape[1])
    scales[:num_basic] = FREE
    coefficients = _path(inputs * scales, target, setting)
    path = [(each, like._replace(weights=weights * scales)) for each, weights in coefficients]
    setting, weights = path[-1] if setting else min(path, key=lambda each: judge(each[1]))
    return weights, setting


def _path(inputs: np.ndarray, target: Target, last: tuple | None) -> Iterator[tuple[tuple, np.ndarray]]:
    """Yields settings and weights, the strongest penalty first: all settings, or those that end with `last`."""
    if target.days is not None:
        ratios, count = ((last[0],), last[1] + 1) if last else (NET_RATIOS, len(NET_PENALTIES))
        for ratio in ratios:
            path = cox.fit_path(inputs, target.days, target.happened, ratio, NET_PENALTIES[:count])
            for index, (_, weights) in enumerate(path):
                yield (ratio, index), weights
        return
    shares = last or LASSO_PENALTIES
    largest = np.abs(inputs.T @ (target.happened - target.happened.mean())).max()
    for share in shares:
        options = {"l1_ratio": 1.0, "solver": "liblinear", "max_iter": 200}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # still a valid candidate
            yield (share,), LogisticRegression(C=1 / (largest * share), **options).fit(inputs, target.happened).coef_[0]


def _is_last(setting: tuple) -> bool:
    """Returns whether a setting of `_path` has the smallest penalty."""
    return setting[-1] in (len(NET_PENALTIES) - 1, LASSO_PENALTIES[-1])


def _multiply(singles: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Computes products of (I, 2) pairs of clipped features, (N, I)."""
    return np.clip(singles[:, pairs[:, 0]], -CLIP, CLIP) * np.clip(singles[:, pairs[:, 1]], -CLIP, CLIP)


def _discordance(target: Target, checks: np.ndarray, weights: Weights) -> float:
    """Computes 1 - Harrell's C or the AUROC; 0.5 without a comparable pair."""
    risks = weights.log_risk(checks)
    if target.days is not None:
        concordance = survival.concordance(target.happened, target.days, risks)
        return 0.5 if np.isnan(concordance) else 1.0 - concordance
    return 1.0 - float(roc_auc_score(target.happened, risks)) if 0 < target.happened.mean() < 1 else 0.5
