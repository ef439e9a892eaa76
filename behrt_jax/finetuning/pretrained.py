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
    found = workdir.load(config.pretrained)
    if "objective" not in found.config:
        raise ValueError(f"pretrained={config.pretrained}: was fine-tuned; expected a run of experiments.pretrain")
    with config.unlocked():
        for section, own in OWN_KEYS.items():
            kept = {key: config[section][key] for key in own}
            config[section] = found.config[section].copy_and_resolve_references()
            config[section].update(kept)
        if config.forecast.codes:
            add_forecast(config, found)
    config.lock()
    return found


def add_forecast(config: ConfigDict, found: workdir.Loaded) -> None:
    """Sets the config of a model whose head reads the pre-trained run's forecasts of some codes.

    Raises:
      ValueError: the run was not trained on time to event with a causal model, or a code is not in its vocabulary.
    """
    objective, place = found.config.objective, f"pretrained={config.pretrained}"
    if "time_to_event" not in ObjectiveConfig(**objective).weights or not found.config.model.causal:
        expected = "a run of configs/events.py, or objective.name=time_to_event with model.causal=True"
        raise ValueError(f"forecast.codes: {place} is trained on {objective.name}; expected {expected}")
    unknown = [code for code in config.forecast.codes if code not in found.vocabulary.ids]
    if unknown:
        raise ValueError(f"forecast.codes: {place} does not know {', '.join(unknown)}; expected codes that it knows")
    config.forecast.ids = tuple(found.vocabulary.ids[code] for code in config.forecast.codes)
    config.forecast.edges = objective.event_edges


def add_rows(found: workdir.Loaded, vocabulary: Vocabulary, path: str) -> workdir.Loaded:
    """Adds a row to the code table for each code that was added to the end of the vocabulary.

    A new row copies the row that the code would use if it were not added: that of its nearest known parent in the data
    set at `path`, or of `[UNK]`. So training starts as it would without added codes.
    """
    before, parents = found.vocabulary, data_vocabulary.nearest_known_ancestors(path, found.vocabulary)
    rows = [*range(len(before))]
    for token in vocabulary.tokens[len(before) :]:
        parent = parents.get(token) or parents.get(token.rpartition("//Q")[0]) or SPECIAL_TOKENS[UNK]
        rows.append(before.ids[parent])
    flat: dict[str, Any] = flatten_dict(found.params, sep="/")
    flat = {name: leaf[np.array(rows)] if name.endswith(CODE_TABLE) else leaf for name, leaf in flat.items()}
    return found._replace(params=unflatten_dict(flat, sep="/"), vocabulary=vocabulary)
