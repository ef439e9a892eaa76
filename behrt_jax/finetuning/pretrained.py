"""The pre-trained run that fine-tuning begins with."""

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
}  # the others are the pre-trained run's


def load_pretrained(config: ConfigDict) -> workdir.Loaded:
    """Loads the run to begin with, and takes those of its keys that its parameters are bound to."""
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
    """Sets what a model needs that reads how soon its pre-trained run expects some codes.

    Raises:
      ValueError: the run forecasts no events, or not after its last token; or a code is not in its vocabulary.
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
    """Returns the run with a row of the code table for each code that was added to the end of its vocabulary.

    A row begins as that which the code would be read as if it were not added, so that training begins where it would
    without: the row of its nearest known parent in the data set at `path`, or of `[UNK]`.
    """
    before, parents = found.vocabulary, data_vocabulary.nearest_known_ancestors(path, found.vocabulary)
    rows = [*range(len(before))]
    for token in vocabulary.tokens[len(before) :]:
        parent = parents.get(token) or parents.get(token.rpartition("//Q")[0]) or SPECIAL_TOKENS[UNK]
        rows.append(before.ids[parent])
    flat: dict[str, Any] = flatten_dict(found.params, sep="/")
    flat = {name: leaf[np.array(rows)] if name.endswith(CODE_TABLE) else leaf for name, leaf in flat.items()}
    return found._replace(params=unflatten_dict(flat, sep="/"), vocabulary=vocabulary)
