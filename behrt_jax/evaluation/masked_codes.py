"""Masked-code evaluation: scores a run, baselines and the oracle on the same masked codes of held-out patients."""

import itertools
import logging
import math
from collections.abc import Iterator

import numpy as np

from behrt_jax.baselines import masked_codes
from behrt_jax.data import batches
from behrt_jax.data.dataset import Patients
from behrt_jax.data.sexes import sexes
from behrt_jax.evaluation import reliability
from behrt_jax.evaluation.comparison import Comparison, of_scores
from behrt_jax.evaluation.loaded_run import Run, read_simulation, score_oracle
from behrt_jax.metrics import bootstrap, multilabel
from behrt_jax.objectives import scoring
from behrt_jax.simulation import oracle

logger = logging.getLogger(__name__)
BASELINE_BATCHES = 200


def score_masked(run: Run, others: dict[str, Run], with_baselines: bool = True) -> Comparison:
    """Scores a run, other runs and the baselines on the same masked codes; all but the oracle by age and sex too.

    Args:
      run: the run to score.
      others: other runs on the same data, by name.
      with_baselines: whether to fit baselines.
    """
    scored_batches = list(masked_batches(run, run.patients, run.recipe.evaluation.num_mask_samples))
    if not sum(len(masked.labels) for masked in scored_batches):
        logger.info(f"masked codes: not scored, as {len(run.patients):,} patients have no code to mask")
        return Comparison()
    scores, confidences = _score(run, scored_batches)
    predictors = {}
    if with_baselines:
        predictors = masked_codes.fit_baselines(
            lambda: itertools.islice(training_batches(run), BASELINE_BATCHES),
            lambda: masked_training_batches(run),
            list(masked_batches(run, run.tuning, 1)),
            len(run.vocabulary),
            model_steps=model_steps(run),
        )
    compared = {name: masked_codes.predict(predictor, scored_batches) for name, predictor in predictors.items()}
    compared |= {name: _score(other, scored_batches)[0] for name, other in others.items()}
    comparison = of_scores(scores, compared, "mlm")
    groups = find_groups(run, scored_batches)
    is_right = scores.values["accuracy"][:, None] > 0
    return comparison._replace(
        own=comparison.own | by_group(scores, groups),
        baselines={name: comparison.baselines[name] | by_group(each, groups) for name, each in compared.items()},
        oracle=score_oracle(run, lambda: bootstrap.summarize(ask_oracle(run, scored_batches), "mlm")),
        reliability={"mlm": reliability.of_probabilities(confidences[:, None], is_right, scores.patients)},
    )


def find_groups(run: Run, masked: list[scoring.MaskedBatch]) -> dict[str, np.ndarray]:
    """Returns masks of the masked codes, (n,) bool, by the age when they were recorded and by sex."""
    ages = np.concatenate([each.batch["ages"][each.targets] for each in masked])
    patients = np.concatenate([each.patients for each in masked])
    cells = multilabel.group_cells(None, ages, sexes(run.patients, run.vocabulary.tokens)[patients])
    return {name: cell[:, 0] for name, cell in cells.items() if cell.any()}


def by_group(scores: bootstrap.PerTargetScores, groups: dict[str, np.ndarray]) -> dict[str, dict]:
    """Returns the accuracy in each group: `{"mlm/accuracy/sex=F": entry}`."""
    accuracy, entries = scores.values["accuracy"], {}
    for name, rows in groups.items():
        part = bootstrap.PerTargetScores(scores.patients[rows], {f"accuracy/{name}": accuracy[rows]})
        entries |= bootstrap.summarize(part, "mlm")
    return entries


def ask_oracle(run: Run, scored_batches: list[scoring.MaskedBatch]) -> bootstrap.PerTargetScores:
    """Scores the oracle, which knows the simulation and the patients' whole histories, on the masked codes.

    Raises:
      ValueError: the prepared data differ from the simulation, or tokens hold bins of values.
    """
    simulated_world, histories = read_simulation(run.source, run.vocabulary, run.patients, run.index(run.patients))
    tokens = run.vocabulary.tokens
    column = {code: place for place, code in enumerate(simulated_world.codes)}
    columns = np.array([column.get(token, -1) for token in tokens])
    if binned := sum(token.rpartition("//Q")[0] in column for token in tokens):
        raise ValueError(
            f"{binned:,} tokens hold a bin of a value, whose probability it does not know; train with "
            "data.value_encoding=continuous or none to compare masked codes with the oracle"
        )
    draws = run.recipe.evaluation.num_mask_samples
    parts = []
    for draw in range(draws):
        batch_visits = [_visits(masked) for masked in scored_batches[draw::draws]]
        masks = np.zeros(histories.codes.shape, bool)
        for visits, masked in zip(batch_visits, scored_batches[draw::draws], strict=True):
            masks[visits, columns[masked.labels]] = True
        probabilities = oracle.masked_probabilities(simulated_world, histories, masks)
        for visits, masked in zip(batch_visits, scored_batches[draw::draws], strict=True):
            token_probabilities = np.where(columns >= 0, probabilities[visits][:, columns], 0.0)
            parts.append(scoring.score_log_probabilities(np.log(np.maximum(token_probabilities, 1e-12)), masked))
    return bootstrap.concatenate(parts)


def training_batches(run: Run) -> Iterator[dict]:
    """Yields batches of the train split indefinitely."""
    length, use_sep = run.recipe.data.row_length, run.recipe.data.use_sep
    size = run.recipe.evaluation.batch_size
    return batches.training_batches(run.train, length, size, run.recipe.seed, use_sep=use_sep)


def masked_training_batches(run: Run) -> Iterator[scoring.MaskedBatch]:
    """Yields batches of the train split indefinitely, masked as in evaluation."""
    return scoring.mask_batches(training_batches(run), run.recipe.evaluation.mask_rate, len(run.vocabulary), draws=1)


def model_steps(run: Run) -> int:
    """Returns how many batches of `masked_training_batches` mask as many codes as training did."""
    train, settings = run.recipe.train, run.recipe.evaluation
    rows = train.num_steps * train.batch_size * run.recipe.objective.mask_rate / settings.mask_rate
    return math.ceil(rows / settings.batch_size)


def masked_batches(run: Run, patients: Patients, draws: int) -> Iterator[scoring.MaskedBatch]:
    """Yields the newest window of each patient, with masks drawn `draws` times."""
    settings, data = run.recipe.evaluation, run.recipe.data
    plain = batches.evaluation_batches(patients, data.row_length, settings.batch_size, data.use_sep)
    return scoring.mask_batches(plain, settings.mask_rate, len(run.vocabulary), draws)


def _score(run: Run, masked: list[scoring.MaskedBatch]) -> tuple[bootstrap.PerTargetScores, np.ndarray]:
    """Scores a run on masked codes; also returns the probability of the most likely code, (n,)."""
    scores = scoring.score(scoring.make_score_step(run.task.model), run.params, masked)
    return scores, scores.values.pop("confidence")


def _visits(masked: scoring.MaskedBatch) -> np.ndarray:
    """Returns the index of the visit of each masked code: (n,)."""
    rows, places = masked.targets
    slots = masked.batch["patient_ids"][rows, places] - 1
    return masked.batch["window_starts"][rows, slots] + masked.batch["visit_ids"][rows, places]
