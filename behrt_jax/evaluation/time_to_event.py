"""Time-to-event evaluation: the likelihood of a run's event rates, compared with rates shared by all patients."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax.data import batches, event_targets, windows
from behrt_jax.evaluation.comparison import Comparison, of_scores
from behrt_jax.evaluation.loaded_run import Run
from behrt_jax.metrics import bootstrap
from behrt_jax.models import inputs
from behrt_jax.objectives import time_to_event

FITTED_VISITS = 5000
Predictor = Callable[[dict], jax.Array]  # maps columns to (B, K, bins, T) log rates


def score_events(run: Run, others: dict[str, Run], with_baselines: bool = True) -> Comparison:
    """Scores a run's event rates after each visit, and those of other runs and of train as a whole.

    Args:
      run: the run to score.
      others: other runs on the same data, by name.
      with_baselines: whether to fit baselines.
    """
    edges = tuple(run.recipe.objective.event_edges)
    predictors = {"own": _predictor(run)}
    if with_baselines:
        rates = _fit_rates(run, edges)[None, None]
        rows = (run.recipe.evaluation.batch_size, run.recipe.objective.queries_per_row)
        predictors["rates of train"] = lambda columns: jnp.broadcast_to(rates, (*rows, *rates.shape[2:]))
    predictors |= {name: _predictor(other) for name, other in others.items()}
    outcomes = _outcomes(run, edges, predictors)
    return of_scores(outcomes.pop("own"), outcomes, "time_to_event")


def _predictor(run: Run) -> Predictor:
    targets = np.flatnonzero(run.task.is_target)
    step = jax.jit(lambda params, columns: time_to_event.score_events(run.task.model, params, columns, targets))
    return functools.partial(step, run.params)


def _outcomes(
    run: Run, edges: tuple[float, ...], predictors: dict[str, Predictor]
) -> dict[str, bootstrap.PerTargetScores]:
    """Returns the loss of each predictor at each visit, averaged over codes, on the patients' newest windows."""
    recipe = run.recipe
    times = event_targets.index_events(
        run.patients, run.index(run.patients), run.task.is_target, recipe.objective.first_event_only
    )
    loss_fn = jax.jit(
        lambda rates, days, happened: time_to_event.event_losses(rates, days, happened, edges).mean(axis=-1)
    )
    sizes = (recipe.data.row_length, recipe.evaluation.batch_size, recipe.data.use_sep)
    parts = {name: [] for name in predictors}
    for number, plain in enumerate(batches.evaluation_batches(run.patients, *sizes)):
        batch = times.add(plain, recipe.objective.queries_per_row, windows.EVALUATION_SALT + number)
        rows, slots = np.nonzero(batch["event_weights"])
        patients = plain["patient_index"][rows, plain["patient_ids"][rows, batch["event_ends"][rows, slots]] - 1]
        for name, predictor in predictors.items():
            rates = predictor(inputs.device_columns(batch))
            losses = np.asarray(loss_fn(rates, batch["event_days"], batch["event_happened"]))
            parts[name].append(bootstrap.PerTargetScores(patients, {"loss": losses[rows, slots]}))
    return {name: bootstrap.concatenate(scores) for name, scores in parts.items()}


def _fit_rates(run: Run, edges: tuple[float, ...]) -> np.ndarray:
    """Estimates the log event rate, events over exposure, of each bin and target code on train: (bins, T)."""
    times = event_targets.index_events(
        run.train, run.index(run.train), run.task.is_target, run.recipe.objective.first_event_only
    )
    visits = times.spread(FITTED_VISITS)
    events = exposure = np.zeros(())
    for chunk in np.array_split(visits, max(len(visits) // 500, 1)):
        days, happened = times.after(chunk)
        time_at_risk, last = jax.device_get(time_to_event.exposures(jnp.asarray(days), edges))
        events, exposure = events + (last & happened[..., None]).sum(axis=0), exposure + time_at_risk.sum(axis=0)
    return np.log((events + 0.5) / (exposure + 0.5 * exposure.mean())).T.astype(np.float32)
