"""Scores for the report: a pre-trained run's predictions of masked codes and next visits of held-out patients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.data.sexes import sexes
from behrt_jax.evaluation import masked_codes, next_visit
from behrt_jax.evaluation.loaded_run import Run
from behrt_jax.metrics import bootstrap, multilabel
from behrt_jax.metrics.bootstrap import PerTargetScores
from behrt_jax.models import inputs
from behrt_jax.models.inputs import model_arguments

MOST_CELLS = 20_000_000  # most visits times codes; of more, the last visits are used


class Reliability(NamedTuple):
    """Predictions in bins of equal mass: mean prediction, observed frequency with its interval, and count."""

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray


class Scored(NamedTuple):
    """Scores for the report.

    Attributes:
      reliabilities: by title.
      hidden_groups: the accuracy at masked codes, in the format of `tables.select_groups`: `{"sex=F": {"run": entry}}`.
    """

    reliabilities: dict[str, Reliability]
    hidden_groups: dict[str, dict]


class Guesses(NamedTuple):
    """The most likely code at each of n masks: its probability, whether it is right, the patient, and their age."""

    probabilities: np.ndarray
    right: np.ndarray
    patients: np.ndarray
    ages: np.ndarray


def reliability(probabilities: np.ndarray, came: np.ndarray, owners: np.ndarray, floor: int = 1) -> Reliability | None:
    """Compares probabilities with outcomes, in as many bins as have `floor` patients each; None if no binning has.

    Args:
      probabilities: (N, T) float32.
      came: (N, T) bool, whether each code occurred.
      owners: (N,) int from 0, the patient of each row.
      floor: minimum number of patients per bin.
    """
    for num_bins in range(multilabel.CALIBRATION_BINS, 0, -1):
        table = multilabel.calibration_table(probabilities, came, owners, num_bins)
        table = table[:, :, table[:, 2].sum(axis=0) > 0]
        if (table[:, 2] > 0).sum(axis=0).min() >= floor:
            break
    else:
        return None
    total = table.sum(axis=0)
    resampled = np.tensordot(bootstrap.resamples(len(table)).astype(np.float64), table, 1)
    shares = bootstrap.divide(resampled[:, 1], resampled[:, 2])
    low, high = np.nanquantile(shares, [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2], axis=0)
    return Reliability(total[0] / total[2], total[1] / total[2], low, high, total[2].astype(int))


def guess_hidden(run: Run) -> Guesses:
    """Predicts the codes that evaluation masks."""

    @jax.jit
    def guess(params, columns, masked):
        (_, *arrays), kwargs = model_arguments(columns)
        logits = run.task.model.apply(params, masked.inputs, *arrays, **kwargs, masked_positions=masked.positions)
        probabilities = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
        return probabilities.max(axis=-1), probabilities.argmax(axis=-1) == masked.labels

    parts = []
    for sample in masked_codes.masked_batches(run, run.patients, run.recipe.evaluation.num_mask_samples):
        probabilities, right = jax.device_get(guess(run.params, inputs.device_columns(sample.batch), sample.masked))
        chosen, ages = np.nonzero(sample.masked.weights), sample.batch["ages"][sample.targets]
        parts.append((probabilities[chosen], right[chosen], sample.patients, ages))
    return Guesses(*map(np.concatenate, zip(*parts, strict=True)))


def score(run: Run, floor: int = 1) -> Scored:
    """Computes the scores that the report shows in addition to the evaluation, in bins of `floor` patients or more."""
    reliabilities, groups = {}, {}
    if "mlm" in run.task.model.objectives:
        guesses = guess_hidden(run)
        owners = np.unique(guesses.patients, return_inverse=True)[1]
        confidences, labels = guesses.probabilities[:, None], guesses.right[:, None]
        reliabilities["Masked codes, the likeliest code"] = reliability(confidences, labels, owners, floor)
        groups = _by_group(run, guesses)
    if "next_visit" in run.task.model.objectives:
        split = next_visit.find_examples(run, run.patients)
        if len(split.examples):
            probabilities = next_visit.predict(run, None, split)[0].scored
            rows = slice(-max(1, MOST_CELLS // probabilities.shape[1]), None)
            owners = np.unique(split.examples.patients[rows], return_inverse=True)[1]
            labels = split.examples.targets[rows].toarray()
            reliabilities["Next visits, every code"] = reliability(probabilities[rows], labels, owners, floor)
    return Scored({title: table for title, table in reliabilities.items() if table is not None}, groups)


def _by_group(run: Run, guesses: Guesses) -> dict[str, dict]:
    """Returns the accuracy at masked codes by age band and sex."""
    sex = sexes(run.patients, run.vocabulary.tokens)[guesses.patients]
    groups = {}
    for name, cell in multilabel.group_cells(None, guesses.ages, sex).items():
        rows = cell[:, 0]
        if rows.any():
            scores = PerTargetScores(guesses.patients[rows], {"accuracy": guesses.right[rows].astype(np.float64)})
            groups[name] = {"run": bootstrap.summarize(scores, "mlm")["mlm/accuracy"]}
    return groups
