"""Events ahead on held-out patients: the likelihood of a run's rates beside rates that are the same for everyone."""

import jax
import jax.numpy as jnp
import numpy as np

from behrt_jax import evaluate, metrics
from behrt_jax.data import batches, events_ahead, sequences
from behrt_jax.data.dataset import Patients
from behrt_jax.objectives import time_to_event
from experiments.run import Run

FITTED_VISITS = 5000


def score_events(run: Run, other: Run | None = None, with_baselines: bool = True) -> dict:
    """Scores a run on events ahead of its visits, and the rates of train on the same visits.

    Args:
      run: the run.
      other: a run of the same data, to compare with.
      with_baselines: whether to fit baselines.
    """
    targets, edges = np.flatnonzero(run.trained.is_target), tuple(run.config.objective.event_edges)
    own = _outcomes(run, lambda batch: _step(run)(run.params, evaluate.device_columns(batch)))
    compared = {}
    if with_baselines:
        log_rates = _fit_rates(run, edges)[None, None]
        shape = (run.config.evaluation.batch_size, run.config.objective.event_visits, len(edges) + 1, len(targets))
        compared["rates of train"] = _outcomes(run, lambda batch: jnp.broadcast_to(log_rates, shape))
    if other is not None:
        compared["other run"] = _outcomes(run, lambda batch: _step(other)(other.params, evaluate.device_columns(batch)))
    return {
        "metrics": metrics.summarize(own, "time_to_event"),
        "baselines": {name: metrics.summarize(found, "time_to_event") for name, found in compared.items()},
        "versus": {name: metrics.paired(own, found, "time_to_event") for name, found in compared.items()},
    }


def _step(run: Run):
    targets = np.flatnonzero(run.trained.is_target)
    return jax.jit(lambda params, columns: time_to_event.score_events(run.trained.model, params, columns, targets))


def _outcomes(run: Run, predict) -> metrics.Outcomes:
    """Returns the loss at each visit, a mean over codes, on the newest windows of the patients."""
    config, edges = run.config, tuple(run.config.objective.event_edges)
    times = events_ahead.index_events(run.patients, run.index(run.patients), run.trained.is_target)
    lose = jax.jit(lambda rates, days, happened: time_to_event.event_losses(rates, days, happened, edges).mean(axis=-1))
    sizes = (config.data.row_length, config.evaluation.batch_size, config.data.separators)
    parts = []
    for number, plain in enumerate(batches.evaluation_batches(run.patients, *sizes)):
        batch = times.add(plain, config.objective.event_visits, sequences.EVALUATION_SALT + number)
        rows, slots = np.nonzero(batch["event_weights"])
        patients = plain["patient_index"][rows, plain["patient_ids"][rows, batch["event_ends"][rows, slots]] - 1]
        losses = np.asarray(lose(predict(batch), batch["event_days"], batch["event_happened"]))
        parts.append(metrics.Outcomes(patients, {"loss": losses[rows, slots]}))
    return metrics.concatenate(parts)


def _fit_rates(run: Run, edges: tuple[float, ...]) -> np.ndarray:
    """Returns the log of events over exposure of each bin and target code in train, (bins, T)."""
    patients: Patients = run.train
    times = events_ahead.index_events(patients, run.index(patients), run.trained.is_target)
    visits = np.unique(np.linspace(0, len(times.ends) - 1, FITTED_VISITS).astype(np.int64))
    events = exposure = np.zeros(())
    for some in np.array_split(visits, max(len(visits) // 500, 1)):
        days, happened = times.after(some)
        spent, last = jax.device_get(time_to_event.exposures(jnp.asarray(days), edges))
        events, exposure = events + (last & happened[..., None]).sum(axis=0), exposure + spent.sum(axis=0)
    return np.log((events + 0.5) / (exposure + 0.5 * exposure.mean())).T.astype(np.float32)
