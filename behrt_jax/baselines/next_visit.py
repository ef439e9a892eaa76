"""Baselines for next visits: counting and an MLP, fitted on train and tuned on tuning.

Each baseline reads everything recorded before the target visit; the model reads the part of it that fits in a row.
"""

import logging
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import optax
import scipy.special

from behrt_jax.baselines import mlp
from behrt_jax.baselines.mlp import Features, MLPConfig, Schedule
from behrt_jax.baselines.next_visit_features import Histories, add_past, describe_histories, last_codes, past_codes
from behrt_jax.data.dataset import Patients
from behrt_jax.data.next_visit_targets import NextVisits
from behrt_jax.data.windows import VisitIndex

logger = logging.getLogger(__name__)
MAX_EXAMPLES = 200_000
STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0)
HALF_LIVES = (2.0, 6.0, 20.0, 60.0, math.inf)  # in visits
AGE_BINS = np.arange(0, 100, 5)
AHEAD_DAYS = (0.04, 0.25, 1, 2, 4, 7, 10, 14, 21, 28, 35, 60, 90, 120, 180, 270, 350, 365, 380, 540, 730, 1096, 1826)
DAYS_PER_YEAR = 365.25
BATCH_SIZE = 512
MAX_STEPS = 8000  # more if the model saw more visits in training (`model_examples`)
CHECK_EVERY, PATIENCE = 200, 3  # in steps; CHECK_EVERY is at least one pass over train
# Chosen on the tuning split of the bundled data: a learning rate of 0.002 with dropout 0.5 was better than 0.001 with
# 0.3. Counts that decay with a half-life of 8 visits, the only one tried, add 0.03 to 0.04 to the average precision.
RECIPES = {"MLP": MLPConfig(0.002, hidden=512, dropout=0.5)}
RECENT = 8.0


class Split(NamedTuple):
    """Patients, their visits, and the visits to predict."""

    patients: Patients
    index: VisitIndex
    examples: NextVisits


class Table(NamedTuple):
    """Training data of a network: (N, D) sparse float32 features and (N, T) sparse bool targets."""

    features: scipy.sparse.csr_array
    targets: scipy.sparse.csr_array


Predictor = Callable[[Split], np.ndarray]


def fit_baselines(train: Split, tuning: Split, vocab_size: int, model_examples: int = 0) -> dict[str, Predictor]:
    """Fits every baseline.

    Args:
      train: the split to fit; a random sample if it has more than `MAX_EXAMPLES` visits to predict.
      tuning: its loss selects smoothing, decay and the number of training steps.
      vocab_size: V.
      model_examples: number of target visits that the model saw in training, with repeats; a network that still
        improves is not stopped earlier.

    Returns:
      By name, a function from a split to (N, T) float32 probabilities.

    Raises:
      ValueError: train or tuning has no target visit.
    """
    for name, split in (("train", train), ("tuning", tuning)):
        if not len(split.examples):
            raise ValueError(
                f"{name}: none of {len(split.patients):,} patients has a second visit with a target code; choose other "
                "objective.targets or a lower objective.min_patients"
            )
    train, tuning = sample_examples(train, MAX_EXAMPLES), sample_examples(tuning, MAX_EXAMPLES)
    share = frequency(train.examples)
    logger.info("fitting baselines: counting")
    repeats = [repeat_last(train, vocab_size, strength) for strength in STRENGTHS]
    frequencies = [own_frequency(share, vocab_size, half_life, k) for half_life in HALF_LIVES for k in STRENGTHS]
    return {
        "frequency": lambda split: np.tile(share.astype(np.float32), (len(split.examples), 1)),
        "repeat last visit": choose(repeats, tuning),
        "own frequency with decay": choose(frequencies, tuning),
        **fit_networks(train, tuning, vocab_size, model_examples=model_examples),
    }


def fit_with_time_known(train: Split, tuning: Split, vocab_size: int, model_examples: int = 0) -> dict[str, Predictor]:
    """Fits the MLP with the start time of the target visit as an input; see `fit_baselines`."""
    train, tuning = sample_examples(train, MAX_EXAMPLES), sample_examples(tuning, MAX_EXAMPLES)
    return fit_networks(train, tuning, vocab_size, time_known=True, model_examples=model_examples)


def sample_examples(split: Split, count: int, seed: int = 0) -> Split:
    """Samples `count` visits to predict at random; all if there are no more."""
    examples = split.examples
    if len(examples) <= count:
        return split
    rows = np.sort(np.random.default_rng(seed).choice(len(examples), count, replace=False))
    return split._replace(examples=examples.take(rows))


def choose(candidates: list[Predictor], tuning: Split) -> Predictor:
    """Returns the candidate with the lowest loss on tuning."""
    return min(candidates, key=lambda candidate: mean_loss(candidate(tuning), tuning.examples.targets))


def mean_loss(probabilities: np.ndarray, targets: scipy.sparse.csr_array) -> float:
    """Computes the binary cross-entropy in nats, summed over codes and averaged over visits."""
    rows = np.repeat(np.arange(len(probabilities)), np.diff(targets.indptr))
    estimates = np.clip(probabilities, 1e-7, 1 - 1e-7)
    present = estimates[rows, targets.indices].astype(np.float64)
    log_absent = np.log1p(-estimates).sum(dtype=np.float64)
    return float(-(log_absent + (np.log(present) - np.log1p(-present)).sum()) / len(estimates))


def frequency(examples: NextVisits) -> np.ndarray:
    """Returns the share of examples with each target code, (T,)."""
    return np.asarray(examples.targets.sum(axis=0)).ravel() / len(examples)


def last_targets(split: Split, vocab_size: int) -> scipy.sparse.csr_array:
    """Returns the target codes of the last visit that were recorded before each target visit, (N, T) sparse bool."""
    codes = last_codes(split.patients, split.index, split.examples, vocab_size)
    return codes[:, split.examples.codes].astype(bool)


def repeat_last(train: Split, vocab_size: int, strength: float) -> Predictor:
    """Predicts each code from whether the last visit contained it.

    The probability of a repeat is smoothed by `strength` examples at its mean over all codes, that of a new code by
    `strength` examples at the code's frequency.
    """
    last, targets = last_targets(train, vocab_size).astype(np.float64), train.examples.targets.astype(np.float64)
    last_counts, both_counts, target_counts = (
        np.asarray(table.sum(axis=0)).ravel() for table in (last, last.multiply(targets), targets)
    )
    mean = both_counts.sum() / max(last_counts.sum(), 1)
    repeat_rate = (both_counts + strength * mean) / (last_counts + strength)
    share = target_counts / len(train.examples)
    new_rate = (target_counts - both_counts + strength * share) / (len(train.examples) - last_counts + strength)

    def predictor(split: Split) -> np.ndarray:
        predictions = np.tile(new_rate.astype(np.float32), (len(split.examples), 1))
        rows, codes = last_targets(split, vocab_size).nonzero()
        predictions[rows, codes] = repeat_rate[codes]
        return predictions

    return predictor


def own_frequency(share: np.ndarray, vocab_size: int, half_life: float, strength: float) -> Predictor:
    """Predicts decayed shares of past visits with each code, smoothed by `strength` visits at train's frequencies."""

    def predictor(split: Split) -> np.ndarray:
        past = past_codes(split.patients, split.index, split.examples, vocab_size, half_life)
        ones = scipy.sparse.csr_array(np.ones((len(split.index.owners), 1), np.float32))
        visits = add_past(ones, split.index, split.examples, half_life).toarray() + np.float32(strength)
        return (past[:, split.examples.codes].toarray() + (strength * share).astype(np.float32)) / visits

    return predictor


def features_of(split: Split, vocab_size: int, time_known: bool = False) -> scipy.sparse.csr_array:
    """Returns the inputs of regression and MLP, one row per target visit, (N, 4 V + 24) sparse float32.

    They use only what was recorded before the target visit: log counts of all codes over past visits, the same with
    visits decaying by a half-life of `RECENT`, codes of the last visit, static tokens, the age at the last recorded
    code in bins of five years (the first if unknown), and the logs of the number of past visits, of the days between
    the last two, and of the days from the start of the last one to the last recorded code.

    With `time_known`, the age is that at the start of the target visit. The days to it from the last recorded code and
    from the start of the last visit are added, as logs and in the bins of `AHEAD_DAYS`.
    """
    histories: Histories = describe_histories(split.patients, split.index, split.examples, vocab_size)
    recent = past_codes(split.patients, split.index, split.examples, vocab_size, RECENT)
    ages, numbers = histories.ages, [histories.visits, histories.days, histories.since_start]
    ahead = (histories.ahead, histories.ahead + histories.since_start) if time_known else ()
    if time_known:
        ages = ages + histories.ahead / DAYS_PER_YEAR
    bins = np.searchsorted(AGE_BINS, np.nan_to_num(ages, nan=-1.0), side="right")
    blocks = [histories.counts.log1p(), recent.log1p(), histories.last, histories.statics]
    blocks += [np.eye(len(AGE_BINS) + 1, dtype=np.float32)[bins]]
    blocks += [np.eye(len(AHEAD_DAYS) + 1, dtype=np.float32)[np.searchsorted(AHEAD_DAYS, days)] for days in ahead]
    blocks += [np.log1p(np.stack([*numbers, *ahead], axis=1)).astype(np.float32)]
    return scipy.sparse.hstack([scipy.sparse.csr_array(block) for block in blocks]).tocsr()


def fit_networks(
    train: Split,
    tuning: Split,
    vocab_size: int,
    recipes: dict[str, MLPConfig] | None = None,
    time_known: bool = False,
    model_examples: int = 0,
) -> dict[str, Predictor]:
    """Fits the MLP, or other `recipes`, on one stream of features."""
    logger.info("fitting baselines: features")
    table = Table(features_of(train, vocab_size, time_known), train.examples.targets)
    columns = np.unique(table.features.indices)
    table = table._replace(features=table.features[:, columns])
    checks = Table(features_of(tuning, vocab_size, time_known)[:, columns], tuning.examples.targets)
    networks = train_on_tables(table, checks, recipes or RECIPES, model_examples)

    def predictor(params) -> Predictor:
        return lambda split: probabilities(params, features_of(split, vocab_size, time_known)[:, columns])

    return {name: predictor(params) for name, params in networks.items()}


def train_on_tables(
    table: Table, checks: Table, recipes: dict[str, MLPConfig], model_examples: int = 0
) -> dict[str, dict]:
    """Trains networks on a table until their loss on `checks`, that of tuning, is flat; returns their parameters."""
    count = table.features.shape[0]
    size = min(BATCH_SIZE, count)
    share = np.clip(np.asarray(table.targets.sum(axis=0)).ravel() / count, 1e-6, 1 - 1e-6)

    def loss(logits, targets):
        return optax.sigmoid_binary_cross_entropy(logits, targets).sum(axis=-1)

    def tuning_loss(params) -> float:
        return mean_loss(probabilities(params, checks.features), checks.targets)

    schedule = Schedule(max(MAX_STEPS, math.ceil(model_examples / size)), max(CHECK_EVERY, count // size), PATIENCE)
    stream = mini_batches(table, size)
    return mlp.train_networks(stream, recipes, scipy.special.logit(share), loss, tuning_loss, schedule)


def probabilities(params: dict, features: scipy.sparse.csr_array) -> np.ndarray:
    """Computes (N, T) float32 probabilities of a network."""
    return scipy.special.expit(mlp.predict(params, Features(features)))


def mini_batches(table: Table, size: int, seed: int = 0) -> Iterator[tuple[Features, np.ndarray]]:
    """Yields features and dense float32 targets of `size` examples, endlessly, reshuffled for each pass."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(table.features.shape[0])
        for start in range(0, len(order) - size + 1, size):
            rows = np.sort(order[start : start + size])
            yield Features(table.features[rows]), table.targets[rows].toarray().astype(np.float32)
