"""Loads the pre-trained run that fine-tuning starts from."""

from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from behrt_jax.data import vocabulary as data_vocabulary
from behrt_jax.data.vocabulary import SPECIAL_TOKENS, UNK, Vocabulary
from behrt_jax.models.embeddings import CODE_TABLE
from behrt_jax.objectives.config import ObjectiveConfig
from behrt_jax.training import workdir

OWN_KEYS = {
    "data": ("path", "prepared_dir", "sex_codes"),
    "model": ("dropout", "pooling"),
}  # all other keys come from the pre-trained run


def load_pretrained(config: ConfigDict) -> workdir.Loaded:
    """Loads the pre-trained run and copies the config keys that its parameters depend on."""
    run = workdir.load(config.pretrained)
    if "objective" not in run.config:
        raise ValueError(f"pretrained={config.pretrained}: was fine-tuned; expected a run of experiments.pretrain")
    with config.unlocked():
        for section, keys in OWN_KEYS.items():
            values = {key: config[section][key] for key in keys}
            config[section] = run.config[section].copy_and_resolve_references()
            config[section].update(values)
        if config.forecast.codes:
            add_forecast(config, run)
    config.lock()
    return run


def add_forecast(config: ConfigDict, found: workdir.Loaded) -> None:
    """Sets the config of a model whose head reads the pre-trained run's forecasts of some codes.

    Raises:
      ValueError: the run was not trained on time to event with a causal model, or a code is not in its vocabulary.
    """
    objective, source = found.config.objective, f"pretrained={config.pretrained}"
    if "time_to_event" not in ObjectiveConfig(**objective).weights or not found.config.model.causal:
        expected = "a run of configs/events.py, or objective.name=time_to_event with model.causal=True"
        raise ValueError(f"forecast.codes: {source} is trained on {objective.name}; expected {expected}")
    unknown = [code for code in config.forecast.codes if code not in found.vocabulary.ids]
    if unknown:
        raise ValueError(f"forecast.codes: {source} does not know {', '.join(unknown)}; expected codes that it knows")
    config.forecast.ids = tuple(found.vocabulary.ids[code] for code in config.forecast.codes)
    config.forecast.edges = objective.event_edges


def add_rows(found: workdir.Loaded, vocabulary: Vocabulary, path: str) -> workdir.Loaded:
    """Adds a row to the code table for each code that was added to the end of the vocabulary.

    A new row copies the row that the code would use if it were not added: that of its nearest known parent in the data
    set at `path`, or of `[UNK]`. So training starts as it would without added codes.
    """
    old_vocabulary, parents = found.vocabulary, data_vocabulary.nearest_known_ancestors(path, found.vocabulary)
    rows = [*range(len(old_vocabulary))]
    for token in vocabulary.tokens[len(old_vocabulary) :]:
        parent = parents.get(token) or parents.get(token.rpartition("//Q")[0]) or SPECIAL_TOKENS[UNK]
        rows.append(old_vocabulary.ids[parent])
    flat: dict[str, Any] = flatten_dict(found.params, sep="/")
    flat = {name: leaf[np.array(rows)] if name.endswith(CODE_TABLE) else leaf for name, leaf in flat.items()}
    return found._replace(params=unflatten_dict(flat, sep="/"), vocabulary=vocabulary)
