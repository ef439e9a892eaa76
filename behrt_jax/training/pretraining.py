"""The pre-training task of a recipe: model and heads, objective, batches, and metrics on tuning."""

import dataclasses
import functools
import logging
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
from behrt_jax.models import devices, inputs
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.objectives import mlm, scoring
from behrt_jax.objectives.base import Objective
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.objectives.joint import make_objective
from behrt_jax.training import examples, precision, workdir
from behrt_jax.training.recipe import Facts, PretrainingRecipe, read_recipe, with_facts

logger = logging.getLogger(__name__)
EVENT_BINS = 8


class PretrainingTask(NamedTuple):
    """A model and its pre-training objective.

    Attributes:
      recipe: every section of the recipe, with the facts in them.
      facts: what the data say.
      vocabulary: V tokens.
      model: with a head for each objective.
      objective: the objective to minimise.
      tuning_objective: the same on fixed targets, with single codes masked at `evaluation.mask_rate`.
      is_target: (V,) bool, the target codes of next visits and events; all False for masked codes alone.
    """

    recipe: PretrainingRecipe
    facts: Facts
    vocabulary: Vocabulary
    model: BEHRTForPretraining
    objective: Objective
    tuning_objective: Objective
    is_target: np.ndarray


class PretrainingRun(NamedTuple):
    """The prepared data, the patients to train on, and the task."""

    prepared: Prepared
    train: dataset.Patients
    task: PretrainingTask


def make_task(recipe: PretrainingRecipe, facts: Facts, vocabulary: Vocabulary) -> PretrainingTask:
    """Builds the task of a recipe and its facts."""
    recipe = with_facts(recipe, facts)
    is_target = _find_targets(recipe.objective, vocabulary)
    model = workdir.build_model(recipe.model, recipe.objective)
    arguments = (recipe.data.use_sep, is_target, examples.carries_value(vocabulary))
    tuning_settings = dataclasses.replace(recipe.objective, mask_rate=recipe.evaluation.mask_rate, mask_values=True)
    objective = make_objective(model, recipe.objective, *arguments)
    tuning_objective = make_objective(model, tuning_settings, *arguments, mlm.EVALUATION)
    return PretrainingTask(recipe, facts, vocabulary, model, objective, tuning_objective, is_target)


def setup(config: ConfigDict) -> PretrainingRun:
    """Reads the recipe of a config, prepares its data, and builds the task; the config is not changed.

    Raises:
      ValueError: the recipe or the data cannot be used, or the data has no examples of an objective.
    """
    recipe = read_recipe(precision.resolve_dtype(config.to_dict(), precision.fastest_dtype(jax.devices()[0])))
    if not isinstance(recipe, PretrainingRecipe):
        raise ValueError(f"recipe: is of {recipe.kind}; expected one of pre-training, such as configs/small.py")
    devices.check_batch_size(recipe.train.batch_size, recipe.train.accumulate_steps)
    code_init.check(recipe.code_init, recipe.model.embedding_dim)
    prepared = prepare(recipe.data)
    train = dataset.sample(dataset.read(prepared.folder, "train"), recipe.train.max_patients)
    num_codes, objective, edges = len(train.codes), recipe.objective, ()
    train = add_query_tokens(recipe, train)
    if objective.query_times == "anytime":
        num_queries = len(train.codes) - num_codes
        logger.info(f"Inserted {num_queries:,} query tokens between visits; the figures below count them as visits.")
    if "time_to_event" in objective.weights and not objective.event_edges:
        times = find_times(recipe, train, _find_targets(objective, prepared.vocabulary))
        edges = tuple(event_targets.fit_edges(times, EVENT_BINS, digits=recipe.data.value_digits))
    task = make_task(recipe, Facts(len(prepared.vocabulary), event_edges=edges), prepared.vocabulary)
    count_examples(task, train, "train")
    return PretrainingRun(prepared, train, task)


def count_examples(task: PretrainingTask, patients: dataset.Patients, split: str) -> None:
    """Reports the examples of each objective in a split; raises a ValueError if train or tuning has none of one."""
    counts = examples.count(task, patients, split == "train")
    logger.info(examples.describe(split, counts))
    if split == "held_out":
        for name in (name for name, number in counts.items() if not number):
            logger.warning(f"held_out has no {examples.NAMES[name]}; the evaluation will leave them out")
    else:
        examples.check(task.recipe, counts, split)


def _find_targets(settings: ObjectiveConfig, vocabulary: Vocabulary) -> np.ndarray:
    if set(settings.weights) == {"mlm"}:
        return np.zeros(len(vocabulary), bool)
    return next_visit_targets.target_codes(vocabulary, settings.targets, settings.min_patients)


def initialize(task: PretrainingTask, train: dataset.Patients) -> Callable:
    """Returns a function from a key to the variables; heads start at the rates of train, codes as in `code_init`."""
    recipe = task.recipe
    code_rows = code_init.make_rows(recipe.code_init, task.vocabulary, recipe.model.embedding_dim)
    visit_codes = code_counts.visit_codes(train, index(recipe.data, train), len(task.is_target))
    shares = (visit_codes.sum(axis=0) + 0.5) / (visit_codes.shape[0] + 1.0)
    logits = np.log(shares / np.maximum(1 - shares, 1e-3)).astype(np.float32)
    rates = {}
    if "time_to_event" in task.model.objectives:
        times = find_times(recipe, train, task.is_target)
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


def training_columns(task: PretrainingTask, train: dataset.Patients, start_step: int) -> Iterator[dict]:
    """Yields the batches for the train step, starting with that of `start_step`."""
    recipe = task.recipe
    length, size, use_sep = recipe.data.row_length, recipe.train.batch_size, recipe.data.use_sep
    times = find_times(recipe, train, task.is_target) if "time_to_event" in task.model.objectives else None
    weights = times.weights if times and recipe.objective.query_times == "anytime" else None
    stream = batches.training_batches(train, length, size, recipe.seed, start_step, use_sep, weights=weights)
    add = adder(recipe.objective, times, recipe.seed)
    return (inputs.read_columns(add(batch, step)) for step, batch in enumerate(stream, start_step))


def tuning_scorer(task: PretrainingTask, tuning: dataset.Patients) -> Callable[[Any], dict[str, float]]:
    """Returns a function from parameters to the objective's metrics on the newest window of each patient.

    Raises:
      ValueError: tuning has no examples of an objective, so that its loss would be undefined.
    """
    recipe = task.recipe
    length, size, use_sep = recipe.data.row_length, recipe.evaluation.batch_size, recipe.data.use_sep
    tuning_step = scoring.make_tuning_step(task.tuning_objective)
    tuning = add_query_tokens(recipe, tuning)
    count_examples(task, tuning, "tuning")
    times = find_times(recipe, tuning, task.is_target) if "time_to_event" in task.model.objectives else None
    add = adder(recipe.objective, times, windows.EVALUATION_SALT)

    def read() -> Iterator[dict]:
        stream = batches.evaluation_batches(tuning, length, size, use_sep)
        return (add(batch, number) for number, batch in enumerate(stream))

    def score(params) -> dict[str, float]:
        return scoring.score_objective(tuning_step, task.tuning_objective, params, read())

    examples.check_batches(recipe, task.tuning_objective, read(), "tuning")
    return score


def add_query_tokens(recipe: PretrainingRecipe, patients: dataset.Patients) -> dataset.Patients:
    """Inserts query tokens between visits if `objective.query_times` is `anytime`."""
    is_anytime = recipe.objective.query_times == "anytime"
    return event_targets.insert_query_tokens(patients, recipe.seed) if is_anytime else patients


def index(config: DataConfig, patients: dataset.Patients) -> windows.VisitIndex:
    """Indexes the visits of patients for the rows of a recipe."""
    return windows.index_visits(patients, config.row_length, config.use_sep)


def find_times(
    recipe: PretrainingRecipe, patients: dataset.Patients, is_target: np.ndarray
) -> event_targets.EventTimes:
    """Indexes the times of target codes of patients, with or without query tokens, by the settings of a recipe."""
    first, by_time = recipe.objective.first_event_only, recipe.objective.query_times == "anytime"
    return event_targets.index_events(patients, index(recipe.data, patients), is_target, first, by_time)


def adder(config: ObjectiveConfig, times: event_targets.EventTimes | None, seed: int) -> Callable[[dict, int], dict]:
    """Returns a function that adds event targets to the batch of a step; without `times`, it changes nothing."""
    if times is None:
        return lambda batch, step: batch
    add = functools.partial(times.add, num_visits=config.queries_per_row)
    return lambda batch, step: add(batch, salt=int(hash_integers(seed, step + 1).view(np.int64)))
