"""Baselines for masked codes: counting and an MLP, fitted on train and tuned on tuning.

Each baseline reads the same window as the model, with the same codes masked.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

import jax
import numpy as np
import scipy.special

from behrt_jax.baselines import mlp
from behrt_jax.baselines.mlp import Features, MLPConfig, Schedule
from behrt_jax.metrics.bootstrap import PerTargetScores, concatenate
from behrt_jax.objectives.mlm import FIRST_CODE_ID
from behrt_jax.objectives.scoring import MaskedBatch, score_log_probabilities

logger = logging.getLogger(__name__)

Predictor = Callable[[MaskedBatch], np.ndarray]

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MAX_CODES = 2000
AGE_BINS = np.arange(0, 100, 5)
# Learning rates and dropout with the lowest loss on the tuning split of the bundled data: docs/choices.md.
RECIPES = {"MLP on visit, neighbours, history, age": MLPConfig(0.003, hidden=512, dropout=0.5)}
NETWORK_STEPS = 4000  # at most; more if the model saw more codes in training (`model_steps`)
CHECK_EVERY = 250
PATIENCE = 4


def fit_baselines(
    batches: Callable[[], Iterable[dict]],
    masked: Callable[[], Iterator[MaskedBatch]],
    tuning: list[MaskedBatch],
    vocab_size: int,
    model_steps: int = 0,
) -> dict[str, Predictor]:
    """Fits every baseline.

    Args:
      batches: function that starts one pass over unmasked training batches.
      masked: function that starts an endless stream of masked training batches.
      tuning: masked tuning batches; their loss selects the smoothing and the number of training steps.
      vocab_size: V.
      model_steps: number of batches of `masked` with as many masked codes as the model saw in training; a network that
        still improves is not stopped earlier.

    Returns:
      By name, a function from a masked batch to (n, V) log-probabilities of its masked codes.
    """
    logger.info("fitting baselines: counting codes and neighbours")
    counts, following = count_codes(batches(), vocab_size)
    frequency = smoothed_frequency(counts)
    return {
        "most frequent code": most_frequent(frequency),
        "patient's own most frequent code": choose([own_most_frequent(frequency, k) for k in STRENGTHS], tuning),
        "neighbouring codes (bigram)": choose([bigram(frequency, following, k) for k in STRENGTHS], tuning),
        **fit_networks(masked, tuning, frequency, model_steps=model_steps),
    }


def predict(predictor: Predictor, masked_batches: Iterable[MaskedBatch]) -> PerTargetScores:
    """Scores a baseline at each masked code."""
    return concatenate([score_log_probabilities(predictor(batch), batch) for batch in masked_batches])


def choose(candidates: list[Predictor], tuning: list[MaskedBatch]) -> Predictor:
    """Returns the candidate with the lowest loss on tuning."""
    return min(candidates, key=lambda candidate: predict(candidate, tuning).values["loss"].mean())


def count_codes(batches: Iterable[dict], vocab_size: int) -> tuple[np.ndarray, scipy.sparse.csr_array]:
    """Counts maskable codes, (V,), and pairs of consecutive tokens of a patient, (V, V) sparse."""
    counts = np.zeros(vocab_size)
    following = scipy.sparse.csr_array((vocab_size, vocab_size))
    for batch in batches:
        codes = batch["codes"]
        counts += np.bincount(codes[batch["maskable"]], minlength=vocab_size)
        pairs = (batch["patient_ids"][:, 1:] == batch["patient_ids"][:, :-1]) & (batch["patient_ids"][:, 1:] > 0)
        where = codes[:, :-1][pairs], codes[:, 1:][pairs]
        following = following + scipy.sparse.csr_array((np.ones(pairs.sum()), where), shape=(vocab_size, vocab_size))
    return counts, following


def smoothed_frequency(counts: np.ndarray) -> np.ndarray:
    """Returns the share of each code, (V,), slightly above 0 for codes that are not in train."""
    vocab_size = len(counts)
    return (counts + 1e-3 * (np.arange(vocab_size) >= FIRST_CODE_ID)) / (counts.sum() + 1e-3 * vocab_size)


def most_frequent(frequency: np.ndarray) -> Predictor:
    """Predicts the frequencies of train for every patient."""
    scores = _log(frequency)
    return lambda batch: np.broadcast_to(scores, (len(batch.labels), len(scores)))


def own_most_frequent(frequency: np.ndarray, strength: float) -> Predictor:
    """Predicts shares of visible codes in the patient's window, smoothed by `strength` codes at train's frequencies."""

    def predictor(batch: MaskedBatch) -> np.ndarray:
        _, by_patient, groups = visible_counts(batch, len(frequency))
        counts = by_patient[groups[1]].toarray()
        return _log((counts + strength * frequency) / (counts.sum(axis=1, keepdims=True) + strength))

    return predictor


def bigram(frequency: np.ndarray, following: scipy.sparse.csr_array, strength: float) -> Predictor:
    """Predicts from the two adjacent tokens as if they were independent given the code (naive Bayes)."""
    preceding = following.T.tocsr()
    maskable = frequency > 0

    def given(table, neighbours):
        rows = table[neighbours].toarray() * maskable
        return _log((rows + strength * frequency) / (rows.sum(axis=1, keepdims=True) + strength))

    def predictor(batch: MaskedBatch) -> np.ndarray:
        rows, places = batch.targets
        codes = np.pad(np.where(batch.batch["patient_ids"] > 0, batch.masked.inputs, 0), ((0, 0), (1, 1)))
        scores = given(following, codes[rows, places]) + given(preceding, codes[rows, places + 2]) - _log(frequency)
        return scores - scipy.special.logsumexp(scores, axis=1, keepdims=True)

    return predictor


def visible_counts(batch: MaskedBatch, vocab_size: int):
    """Counts visible codes by visit and by patient.

    Returns:
      (visits, V) and (patients, V) sparse counts, and for each masked code the index of its (visit, patient, visit
      before, visit after); a missing visit before or after has the index of an empty last row.
    """
    columns = batch.batch
    real = columns["patient_ids"] > 0
    rows = np.nonzero(real)[0]
    changed = np.diff(columns["patient_ids"][real], prepend=0) != 0
    changed |= np.diff(rows, prepend=-1) != 0
    patient = np.cumsum(changed) - 1
    visit = np.cumsum(changed | (np.diff(columns["visit_ids"][real], prepend=0) != 0)) - 1
    inputs = batch.masked.inputs[real]
    seen = inputs >= FIRST_CODE_ID
    timed = seen & columns["maskable"][real]

    def table(groups, where):
        shape = (groups[-1] + 2, vocab_size)
        ones = np.ones(where.sum(), np.float32)
        return scipy.sparse.csr_array((ones, (groups[where], inputs[where])), shape=shape)

    index = np.full(real.shape, -1)
    index[real] = np.arange(real.sum())
    target = index[batch.targets]
    visit_patient = np.append(patient[np.flatnonzero(np.diff(visit, prepend=-1))], [-1, -1])
    target_visit, missing_visit = visit[target], visit[-1] + 1
    before = np.where(visit_patient[target_visit - 1] == patient[target], target_visit - 1, missing_visit)
    after = np.where(visit_patient[target_visit + 1] == patient[target], target_visit + 1, missing_visit)
    return table(visit, timed), table(patient, seen), (target_visit, patient[target], before, after)


def features(batch: MaskedBatch, vocab_size: int, num_codes: int) -> tuple[Features, np.ndarray]:
    """Returns the inputs of the MLP, one row for all masked codes of a visit at one age.

    The inputs are the visible codes of the visit and of the visits before and after it, log counts in the patient's
    whole window, and the age in bins of five years. Only the `num_codes` most frequent codes are used.

    Returns:
      (N, 4 * num_codes + 21) features and the row of each masked code, (n,).
    """
    by_visit, by_patient, (visit, patient, before, after) = visible_counts(batch, vocab_size)
    columns = slice(FIRST_CODE_ID, FIRST_CODE_ID + num_codes)
    by_visit, by_patient = by_visit[:, columns].minimum(1), by_patient[:, columns].log1p()
    ages = np.nan_to_num(batch.batch["ages"][batch.targets], nan=-1.0)
    bins = np.searchsorted(AGE_BINS, ages, side="right")
    num_bins = len(AGE_BINS) + 1
    _, first, rows = np.unique(visit * num_bins + bins, return_index=True, return_inverse=True)
    visits = [by_visit[index[first]] for index in (visit, before, after)]
    blocks = [*visits, _empty(len(first), num_codes), _one_hot(bins[first], num_bins)]
    shared = [_empty(by_patient.shape[0], 3 * num_codes), by_patient, _empty(by_patient.shape[0], num_bins)]
    groups = _one_hot(patient[first], by_patient.shape[0])
    return Features(scipy.sparse.hstack(blocks).tocsr(), groups, scipy.sparse.hstack(shared).tocsr()), rows


def fit_networks(
    masked: Callable[[], Iterator[MaskedBatch]],
    tuning: list[MaskedBatch],
    frequency: np.ndarray,
    recipes: dict[str, MLPConfig] | None = None,
    model_steps: int = 0,
) -> dict[str, Predictor]:
    """Fits the MLP, or other `recipes`, on one stream of features.

    Only the `MAX_CODES` most frequent codes are predicted; the others share the remaining probability by frequency.
    """
    vocab_size = len(frequency)
    num_codes = min(vocab_size - FIRST_CODE_ID, MAX_CODES)

    def labels_of(batch: MaskedBatch) -> np.ndarray:
        return np.minimum(batch.labels - FIRST_CODE_ID, num_codes)

    def example(batch: MaskedBatch) -> tuple[Features, np.ndarray]:
        inputs, rows = features(batch, vocab_size, num_codes)
        targets = np.zeros((len(inputs), num_codes + 1), np.float32)
        np.add.at(targets, (rows, labels_of(batch)), 1.0)
        return inputs, targets

    def loss(logits, targets):
        return -(jax.nn.log_softmax(logits) * targets).sum(axis=-1)

    checks = [(*features(batch, vocab_size, num_codes), labels_of(batch)) for batch in tuning]

    def tuning_loss(params) -> float:
        scores = [_normalized(mlp.predict(params, inputs))[rows, labels] for inputs, rows, labels in checks]
        return -float(np.concatenate(scores).mean())

    shares = frequency[FIRST_CODE_ID : FIRST_CODE_ID + num_codes]
    bias = _log(np.append(shares, max(1 - shares.sum(), 1e-6)))
    schedule = Schedule(max(NETWORK_STEPS, model_steps), CHECK_EVERY, PATIENCE)
    examples = map(example, masked())
    networks = mlp.train_networks(examples, recipes or RECIPES, bias, loss, tuning_loss, schedule)
    rare_shares = np.where(np.arange(vocab_size) >= FIRST_CODE_ID + num_codes, frequency, 0.0)
    # In logs, to be added to the score of "another code".
    rare_shares = _log(rare_shares / max(rare_shares.sum(), 1e-12))

    def predictor(params) -> Predictor:
        def predict_codes(batch: MaskedBatch) -> np.ndarray:
            inputs, rows = features(batch, vocab_size, num_codes)
            scores = _normalized(mlp.predict(params, inputs))[rows]
            full = scores[:, -1:] + rare_shares[None, :]
            full[:, FIRST_CODE_ID : FIRST_CODE_ID + num_codes] = scores[:, :-1]
            full[:, :FIRST_CODE_ID] = _log(np.zeros(()))
            return full

        return predict_codes

    return {name: predictor(params) for name, params in networks.items()}


def _one_hot(columns: np.ndarray, width: int) -> scipy.sparse.csr_array:
    """Returns one-hot rows, (n, width)."""
    ones = np.ones(len(columns), np.float32)
    return scipy.sparse.csr_array((ones, columns, np.arange(len(columns) + 1)), shape=(len(columns), width))


def _empty(rows: int, columns: int) -> scipy.sparse.csr_array:
    return scipy.sparse.csr_array((rows, columns), dtype=np.float32)


def _normalized(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - scipy.special.logsumexp(wide, axis=1, keepdims=True)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, 1e-12))
