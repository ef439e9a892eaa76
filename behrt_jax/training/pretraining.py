"""The pre-training task of a recipe: model and heads, objective, batches, and metrics on tuning."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from behrt_jax.data import batches, code_counts, dataset, event_targets, next_visit_targets, windows
from behrt_jax.data.config import DataConfig
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.prepare import Prepared, prepare
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.embeddings import code_init
from behrt_jax.models import inputs
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives import mlm, scoring
from behrt_jax.objectives.base import Objective
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.objectives.joint import make_objective
from behrt_jax.training import examples, workdir

EVENT_BINS = 8


class PretrainingTask(NamedTuple):
    """A model and its pre-training objective.

    Attributes:
      model: with a head for each objective.
      objective: the objective to minimise.
      tuning_objective: the same on fixed targets, with single codes masked at `evaluation.mask_rate`.
      is_target: (V,) bool, the target codes of next visits and events; all False for masked codes alone.
      vocabulary: V tokens.
    """

    model: BEHRTForPretraining
    objective: Objective
    tuning_objective: Objective
    is_target: np.ndarray
    vocabulary: Vocabulary


def make_task(config: ConfigDict, vocabulary: Vocabulary) -> PretrainingTask:
    """Builds the task of a config whose `model.vocab_size` and `objective.event_edges` are set."""
    settings = ObjectiveConfig(**config.objective)
    is_target = _find_targets(settings, vocabulary)
    model = workdir.build_model(config)
    arguments = (config.data.use_sep, is_target, examples.carries_value(vocabulary))
    tuning_settings = dataclasses.replace(
        settings, mask_rate=config.evaluation.mask_rate, masking="codes", mask_values=True
    )
    return PretrainingTask(
        model,
        make_objective(model, settings, *arguments),
        make_objective(model, tuning_settings, *arguments, mlm.EVALUATION),
        is_target,
        vocabulary,
    )


def setup(
    config: ConfigDict, say: Callable[[str], None] = lambda line: None
) -> tuple[Prepared, dataset.Patients, PretrainingTask]:
    """Prepares the data of a config, sets the config values that depend on it, and builds the task.

    Returns:
      The prepared data, the patients to train on, and the task.

    Raises:
      ValueError: the data cannot be used, or has no examples of an objective.
    """
    prepared = prepare(DataConfig(**config.data), progress=say)
    train = dataset.sample(dataset.read(prepared.folder, "train"), config.train.max_patients)
    settings = ObjectiveConfig(**config.objective)
    train = mark(config, train, say)
    with config.unlocked():
        config.model.vocab_size = len(prepared.vocabulary)
        if "time_to_event" in settings.weights and not settings.event_edges:
            times = find_times(config, train, _find_targets(settings, prepared.vocabulary))
            config.objective.event_edges = event_targets.fit_edges(times, EVENT_BINS, digits=config.data.value_digits)
    task = make_task(config, prepared.vocabulary)
    count_examples(config, task, train, "train", say)
    return prepared, train, task


def count_examples(
    config: ConfigDict, task: PretrainingTask, patients: dataset.Patients, split: str, say: Callable[[str], None]
) -> None:
    """Reports the examples of each objective in a split; raises a ValueError if train or tuning has none of one."""
    counts = examples.count(config, task.model, task.vocabulary, task.is_target, patients, split == "train")
    say(examples.describe(split, counts))
    if split == "held_out":
        for name in (name for name, number in counts.items() if not number):
            say(f"warning: held_out has no {examples.NAMES[name]}; the evaluation will leave them out")
    else:
        examples.check(config, counts, split)


def _find_targets(settings: ObjectiveConfig, vocabulary: Vocabulary) -> np.ndarray:
    if set(settings.weights) == {"mlm"}:
        return np.zeros(len(vocabulary), bool)
    return next_visit_targets.target_codes(vocabulary, settings.targets, settings.min_patients)


def initialize(
    config: ConfigDict, task: PretrainingTask, train: dataset.Patients, say: Callable[[str], None] = lambda line: None
) -> Callable:
    """Returns a function from a key to the variables; heads start at the rates of train, codes as in `code_init`."""
    code_rows = code_init.make_rows(config, task.vocabulary, train, say)
    visit_codes = code_counts.visit_codes(train, index(config, train), len(task.is_target))
    shares = (visit_codes.sum(axis=0) + 0.5) / (visit_codes.shape[0] + 1.0)
    logits = np.log(shares / np.maximum(1 - shares, 1e-3)).astype(np.float32)
    rates = {}
    if "time_to_event" in task.model.objectives:
        times = find_times(config, train, task.is_target)
        size = len(task.is_target)
        rates = {"log_rates": event_targets.log_rates(times, size), "age_rates": event_targets.age_rates(times, size)}

    def make(key: jax.Array) -> Any:
        variables = workdir.initialize(task.model, key)
        heads = dict(variables["params"])
        if "next_visit" in heads:
            heads["next_visit"] = {**heads["next_visit"], "bias": jax.numpy.asarray(logits)}
        if rates:
            heads["time_to_event"] = {**heads["time_to_event"], **jax.tree.map(jax.numpy.asarray, rates)}
        variables = {**variables, "params": heads}
        return variables if code_rows is None else code_init.place(variables, code_rows)

    return make


def training_columns(
    config: ConfigDict, task: PretrainingTask, train: dataset.Patients, start_step: int
) -> Iterator[dict]:
    """Yields the batches for the train step, starting with that of `start_step`."""
    length, size, use_sep = config.data.row_length, config.train.batch_size, config.data.use_sep
    times = find_times(config, train, task.is_target) if "time_to_event" in task.model.objectives else None
    weights = times.weights if times and config.objective.query_times == "anytime" else None
    stream = batches.training_batches(train, length, size, config.seed, start_step, use_sep, weights=weights)
    add = adder(config, times, config.seed)
    return (inputs.device_columns(add(batch, step)) for step, batch in enumerate(stream, start_step))


def tuning_scorer(
    config: ConfigDict, task: PretrainingTask, tuning: dataset.Patients, say: Callable[[str], None] = lambda line: None
) -> Callable[[Any], dict[str, float]]:
    """Returns a function from parameters to the objective's metrics on the newest window of each patient.

    Raises:
      ValueError: tuning has no examples of an objective, so that its loss would be undefined.
    """
    length, size, use_sep = config.data.row_length, config.evaluation.batch_size, config.data.use_sep
    tuning_step = scoring.make_tuning_step(task.tuning_objective)
    tuning = mark(config, tuning)
    count_examples(config, task, tuning, "tuning", say)
    times = find_times(config, tuning, task.is_target) if "time_to_event" in task.model.objectives else None
    add = adder(config, times, windows.EVALUATION_SALT)

    def read() -> Iterator[dict]:
        stream = batches.evaluation_batches(tuning, length, size, use_sep)
        return (add(batch, number) for number, batch in enumerate(stream))

    def score(params) -> dict[str, float]:
        return scoring.score_objective(tuning_step, task.tuning_objective, params, read())

    examples.check_batches(config, task.tuning_objective, read(), "tuning")
    return score


def mark(
    config: ConfigDict, patients: dataset.Patients, say: Callable[[str], None] = lambda line: None
) -> dataset.Patients:
    """Inserts query tokens between visits if `objective.query_times` is `anytime`, and reports their number."""
    if config.objective.query_times != "anytime":
        return patients
    output = event_targets.insert_query_tokens(patients, config.seed)
    num_queries = len(output.codes) - len(patients.codes)
    say(f"Inserted {num_queries:,} query tokens between visits; the figures below count them as visits.")
    return output


def index(config: ConfigDict, patients: dataset.Patients) -> windows.VisitIndex:
    """Indexes the visits of patients for the rows of a recipe."""
    return windows.index_visits(patients, config.data.row_length, config.data.use_sep)


def find_times(config: ConfigDict, patients: dataset.Patients, is_target: np.ndarray) -> event_targets.EventTimes:
    """Indexes the times of target codes of patients, with or without query tokens, by the settings of a recipe."""
    first, by_time = config.objective.first_event_only, config.objective.query_times == "anytime"
    return event_targets.index_events(patients, index(config, patients), is_target, first, by_time)


def adder(config: ConfigDict, times: event_targets.EventTimes | None, seed: int) -> Callable[[dict, int], dict]:
    """Returns a function that adds event targets to the batch of a step; without `times`, it changes nothing."""
    if times is None:
        return lambda batch, step: batch
    add = functools.partial(times.add, num_visits=config.objective.queries_per_row)
    return lambda batch, step: add(batch, salt=int(hash_integers(seed, step + 1).view(np.int64)))
