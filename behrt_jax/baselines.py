"""What counting, a linear model and an MLP reach on the same hidden codes, fitted on train and tuned on tuning.

Each baseline sees the window that the model sees, with the same codes hidden.
"""

from collections.abc import Callable, Iterable, Iterator

import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse
import scipy.special

from behrt_jax import networks
from behrt_jax.evaluate import MaskedBatch, score_log_probabilities
from behrt_jax.metrics import Outcomes, concatenate
from behrt_jax.networks import Recipe
from behrt_jax.objectives.mlm import FIRST_CODE_ID

Predictor = Callable[[MaskedBatch], np.ndarray]

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MAX_CODES = 2000
AGE_BINS = np.arange(0, 100, 5)
# Linear: of 0.003, 0.01, 0.03, 0.06 and 0.1 the rate of the lowest loss on the tuning split of the bundled data.
# MLP: likewise of 0.001, 0.003, 0.006 and 0.01 with dropout 0.5, and 0.001 with 0.3 (experiments.tune_baselines).
RECIPES = {
    "linear on visit, neighbours, history, age": Recipe(0.03),
    "MLP on visit, neighbours, history, age": Recipe(0.003, hidden=512, dropout=0.5),
}
NETWORK_STEPS = 1000
CHECK_EVERY = 100
PATIENCE = 2


def fit_baselines(
    batches: Callable[[], Iterable[dict]],
    masked: Callable[[], Iterator[MaskedBatch]],
    tuning: list[MaskedBatch],
    vocab_size: int,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Predictor]:
    """Fits every baseline.

    Args:
      batches: starts one pass over unmasked training batches.
      masked: starts an endless stream of masked training batches.
      tuning: masked tuning batches, by whose loss strengths of smoothing and the length of training are chosen.
      vocab_size: V.
      progress: called with the name of each baseline as its fit begins.

    Returns:
      By name, a function from a masked batch to (n, V) log-probabilities of its hidden codes.
    """
    progress("counting codes and neighbours")
    counts, following = count_codes(batches(), vocab_size)
    frequency = smoothed_frequency(counts)
    return {
        "most frequent code": most_frequent(frequency),
        "patient's own most frequent code": choose(
            [own_most_frequent(frequency, strength) for strength in STRENGTHS], tuning
        ),
        "neighbouring codes (bigram)": choose(
            [bigram(frequency, following, strength) for strength in STRENGTHS], tuning
        ),
        **fit_networks(masked, tuning, frequency, progress),
    }


def predict(predictor: Predictor, masked_batches: Iterable[MaskedBatch]) -> Outcomes:
    """Scores a baseline at each hidden code."""
    return concatenate([score_log_probabilities(predictor(batch), batch) for batch in masked_batches])


def choose(candidates: list[Predictor], tuning: list[MaskedBatch]) -> Predictor:
    """Returns the candidate of lowest loss on tuning."""
    return min(candidates, key=lambda candidate: predict(candidate, tuning).values["loss"].mean())


def count_codes(batches: Iterable[dict], vocab_size: int) -> tuple[np.ndarray, scipy.sparse.csr_array]:
    """Counts maskable codes, (V,), and which token follows which in a patient, (V, V) sparse."""
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
    """Returns the share of each code, (V,), a little above 0 for those that train lacks."""
    vocab_size = len(counts)
    return (counts + 1e-3 * (np.arange(vocab_size) >= FIRST_CODE_ID)) / (counts.sum() + 1e-3 * vocab_size)


def most_frequent(frequency: np.ndarray) -> Predictor:
    """Predicts the frequencies of train, whatever the patient."""
    scores = _log(frequency)
    return lambda batch: np.broadcast_to(scores, (len(batch.labels), len(scores)))


def own_most_frequent(frequency: np.ndarray, strength: float) -> Predictor:
    """Predicts the visible codes of the patient's window, mixed with `strength` codes of train's frequencies."""

    def predictor(batch: MaskedBatch) -> np.ndarray:
        _, by_patient, groups = visible_counts(batch, len(frequency))
        seen = by_patient[groups[1]].toarray()
        return _log((seen + strength * frequency) / (seen.sum(axis=1, keepdims=True) + strength))

    return predictor


def bigram(frequency: np.ndarray, following: scipy.sparse.csr_array, strength: float) -> Predictor:
    """Predicts from the tokens on both sides as if they were independent given the code."""
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
      (visits, V) and (patients, V) sparse counts, and for each hidden code the index of its (visit, patient, visit
      before, visit after); a patient without a visit before or after has an empty last row for it.
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
        return scipy.sparse.csr_array((np.ones(where.sum()), (groups[where], inputs[where])), shape=shape)

    index = np.full(real.shape, -1)
    index[real] = np.arange(real.sum())
    target = index[batch.targets]
    of_visit = np.append(patient[np.flatnonzero(np.diff(visit, prepend=-1))], [-1, -1])
    own, nothing = visit[target], visit[-1] + 1
    before = np.where(of_visit[own - 1] == patient[target], own - 1, nothing)
    after = np.where(of_visit[own + 1] == patient[target], own + 1, nothing)
    return table(visit, timed), table(patient, seen), (own, patient[target], before, after)


def features(batch: MaskedBatch, vocab_size: int, num_codes: int) -> scipy.sparse.csr_array:
    """Returns the inputs of the linear model and the MLP, one row a hidden code.

    Visible codes of the visit, of the visits before and after it, log counts in the patient's whole window, the age in
    bins of five years; of the codes the `num_codes` most frequent.
    """
    by_visit, by_patient, (own, patient, before, after) = visible_counts(batch, vocab_size)
    by_visit, by_patient = (
        table[:, FIRST_CODE_ID : FIRST_CODE_ID + num_codes].tocsr() for table in (by_visit, by_patient)
    )
    ages = np.nan_to_num(batch.batch["ages"][batch.targets], nan=-1.0)
    bins = np.searchsorted(AGE_BINS, ages, side="right")
    age = scipy.sparse.csr_array(
        (np.ones(len(bins)), (np.arange(len(bins)), bins)), shape=(len(bins), len(AGE_BINS) + 1)
    )
    history = by_patient[patient].log1p()
    blocks = [by_visit[own].minimum(1), by_visit[before].minimum(1), by_visit[after].minimum(1), history, age]
    return scipy.sparse.hstack(blocks).tocsr()


def fit_networks(
    masked: Callable[[], Iterator[MaskedBatch]],
    tuning: list[MaskedBatch],
    frequency: np.ndarray,
    progress: Callable[[str], None],
    recipes: dict[str, Recipe] | None = None,
) -> dict[str, Predictor]:
    """Fits a multinomial logistic regression and an MLP on one stream of features, or what other `recipes` say.

    Of more than `MAX_CODES` codes, only the most frequent are told apart; the others share what is left by frequency.
    """
    vocab_size = len(frequency)
    num_codes = min(vocab_size - FIRST_CODE_ID, MAX_CODES)

    def features_of(batch: MaskedBatch) -> scipy.sparse.csr_array:
        return features(batch, vocab_size, num_codes)

    def labels_of(batch: MaskedBatch) -> np.ndarray:
        return np.minimum(batch.labels - FIRST_CODE_ID, num_codes)

    def example(batch: MaskedBatch) -> tuple[np.ndarray, np.ndarray]:
        more = -len(batch.labels) % 256  # few shapes are compiled
        inputs = np.pad(features_of(batch).toarray().astype(np.float32), ((0, more), (0, 0)))
        return inputs, np.pad(labels_of(batch), (0, more), constant_values=-1)

    def loss(logits, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
        return (losses * (labels >= 0)).sum() / (labels >= 0).sum()

    checks = scipy.sparse.vstack([features_of(batch) for batch in tuning]).tocsr()
    wanted = np.concatenate([labels_of(batch) for batch in tuning])

    def tuning_loss(params) -> float:
        scores = _normalized(networks.predict(params, checks))
        return float(-scores[np.arange(len(wanted)), wanted].mean())

    known = frequency[FIRST_CODE_ID : FIRST_CODE_ID + num_codes]
    bias = _log(np.append(known, max(1 - known.sum(), 1e-6)))
    lengths = (NETWORK_STEPS, CHECK_EVERY, PATIENCE)
    fitted = networks.descend(map(example, masked()), recipes or RECIPES, bias, loss, tuning_loss, *lengths, progress)
    rest = np.where(np.arange(vocab_size) >= FIRST_CODE_ID + num_codes, frequency, 0.0)
    rest = _log(rest / max(rest.sum(), 1e-12))

    def predictor(params) -> Predictor:
        def predict_codes(batch: MaskedBatch) -> np.ndarray:
            scores = _normalized(networks.predict(params, features_of(batch)))
            full = scores[:, -1:] + rest[None, :]
            full[:, FIRST_CODE_ID : FIRST_CODE_ID + num_codes] = scores[:, :-1]
            full[:, :FIRST_CODE_ID] = _log(np.zeros(()))
            return full

        return predict_codes

    return {name: predictor(params) for name, params in fitted.items()}


def _normalized(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    return wide - scipy.special.logsumexp(wide, axis=1, keepdims=True)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, 1e-12))
