"""What a pre-trained run says of hidden codes and next visits of held-out patients, for the report."""

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

MOST_CELLS = 20_000_000  # of visits times codes; of more, the newest visits


class Reliability(NamedTuple):
    """Predictions in bins of equal mass: what was predicted, what was observed with its interval, and how many."""

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray


class Scored(NamedTuple):
    """What is scored for the report.

    Attributes:
      reliabilities: by title.
      hidden_groups: the accuracy at hidden codes, as `tables.select_groups` gives groups: `{"sex=F": {"run": entry}}`.
    """

    reliabilities: dict[str, Reliability]
    hidden_groups: dict[str, dict]


class Guesses(NamedTuple):
    """The likeliest code at each of n hidden ones: its probability, whether it is right, the patient, their age."""

    probabilities: np.ndarray
    right: np.ndarray
    patients: np.ndarray
    ages: np.ndarray


def reliability(probabilities: np.ndarray, came: np.ndarray, owners: np.ndarray, floor: int = 1) -> Reliability | None:
    """Compares probabilities with what came, in the most bins that each hold enough patients; None where none do.

    Args:
      probabilities: (N, T) float32.
      came: (N, T) bool.
      owners: (N,) int from 0, the patient of each row.
      floor: the fewest patients of a bin.
    """
    for most in range(multilabel.CALIBRATION_BINS, 0, -1):
        table = multilabel.calibration_table(probabilities, came, owners, most)
        table = table[:, :, table[:, 2].sum(axis=0) > 0]
        if (table[:, 2] > 0).sum(axis=0).min() >= floor:
            break
    else:
        return None
    whole = table.sum(axis=0)
    resampled = np.tensordot(bootstrap.resamples(len(table)).astype(np.float64), table, 1)
    shares = bootstrap.divide(resampled[:, 1], resampled[:, 2])
    low, high = np.nanquantile(shares, [(1 - bootstrap.LEVEL) / 2, (1 + bootstrap.LEVEL) / 2], axis=0)
    return Reliability(whole[0] / whole[2], whole[1] / whole[2], low, high, whole[2].astype(int))


def guess_hidden(run: Run) -> Guesses:
    """Asks a run for the codes that evaluation hides."""

    @jax.jit
    def guess(params, columns, masked):
        (_, *given), named = model_arguments(columns)
        logits = run.trained.model.apply(params, masked.inputs, *given, **named, masked_positions=masked.positions)
        chances = jax.nn.softmax(jnp.asarray(logits, jnp.float32))
        return chances.max(axis=-1), chances.argmax(axis=-1) == masked.labels

    parts = []
    for hidden in masked_codes.masked_batches(run, run.patients, run.config.evaluation.num_mask_samples):
        chances, right = jax.device_get(guess(run.params, inputs.device_columns(hidden.batch), hidden.masked))
        chosen, ages = np.nonzero(hidden.masked.weights), hidden.batch["ages"][hidden.targets]
        parts.append((chances[chosen], right[chosen], hidden.patients, ages))
    return Guesses(*map(np.concatenate, zip(*parts, strict=True)))


def score(run: Run, floor: int = 1) -> Scored:
    """Scores what the report shows beside an evaluation, in bins of `floor` patients or more."""
    found, groups = {}, {}
    if "mlm" in run.trained.model.objectives:
        guesses = guess_hidden(run)
        owners = np.unique(guesses.patients, return_inverse=True)[1]
        given, came = guesses.probabilities[:, None], guesses.right[:, None]
        found["Hidden codes, the likeliest code"] = reliability(given, came, owners, floor)
        groups = _by_group(run, guesses)
    if "next_visit" in run.trained.model.objectives:
        split = next_visit.find_examples(run, run.patients)
        if len(split.examples):
            said = next_visit.predict(run, None, split)[0].scored
            rows = slice(-max(1, MOST_CELLS // said.shape[1]), None)
            owners = np.unique(split.examples.patients[rows], return_inverse=True)[1]
            came = split.examples.targets[rows].toarray()
            found["Next visits, every code"] = reliability(said[rows], came, owners, floor)
    return Scored({title: table for title, table in found.items() if table is not None}, groups)


def _by_group(run: Run, guesses: Guesses) -> dict[str, dict]:
    """Returns the accuracy at hidden codes by age band and sex."""
    sex = sexes(run.patients, run.vocabulary.tokens)[guesses.patients]
    found = {}
    for name, cell in multilabel.group_cells(None, guesses.ages, sex).items():
        rows = cell[:, 0]
        if rows.any():
            some = PerTargetScores(guesses.patients[rows], {"accuracy": guesses.right[rows].astype(np.float64)})
            found[name] = {"run": bootstrap.summarize(some, "mlm")["mlm/accuracy"]}
    return found
