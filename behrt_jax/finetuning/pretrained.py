"""Loads the pre-trained run that fine-tuning starts from."""

import dataclasses
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from behrt_jax.data import roll_up
from behrt_jax.data.vocabulary import SPECIAL_TOKENS, UNK, Vocabulary
from behrt_jax.models.embeddings import CODE_TABLE
from behrt_jax.training import workdir
from behrt_jax.training.recipe import FinetuningRecipe, PretrainingRecipe
from behrt_jax.training.workdir import LoadedRun

OWN_KEYS = {
    "data": ("path", "prepared_dir", "sex_codes"),
    "model": ("dropout", "pooling"),
}  # all other keys come from the pre-trained run


def load_pretrained(recipe: FinetuningRecipe) -> tuple[FinetuningRecipe, LoadedRun[PretrainingRecipe]]:
    """Loads the pre-trained run; returns the recipe with the keys that its parameters depend on, and the run."""
    run = workdir.load_pretraining(recipe.pretrained, f"pretrained={recipe.pretrained}")
    sections = {
        name: dataclasses.replace(
            getattr(run.recipe, name), **{key: getattr(getattr(recipe, name), key) for key in keys}
        )
        for name, keys in OWN_KEYS.items()
    }
    return dataclasses.replace(recipe, **sections), run


def add_rows(found: LoadedRun[PretrainingRecipe], vocabulary: Vocabulary, path: str) -> LoadedRun[PretrainingRecipe]:
    """Adds a row to the code table for each code that was added to the end of the vocabulary.

    A new row copies the row that the code would use if it were not added: that of its nearest known parent in the data
    set at `path`, or of `[UNK]`. So training starts as it would without added codes.
    """
    old_vocabulary, new = found.vocabulary, vocabulary.tokens[len(found.vocabulary) :]
    rules = found.recipe.data.roll_up
    parents = roll_up.find_ancestors(rules, roll_up.read_links(path, rules), new, old_vocabulary.count_of)
    rows = [*range(len(old_vocabulary))]
    for token in new:
        parent = parents.get(token) or parents.get(token.rpartition("//Q")[0]) or SPECIAL_TOKENS[UNK]
        rows.append(old_vocabulary.ids[parent])
    flat: dict[str, Any] = flatten_dict(found.params, sep="/")
    flat = {name: leaf[np.array(rows)] if name.endswith(CODE_TABLE) else leaf for name, leaf in flat.items()}
    return found._replace(params=unflatten_dict(flat, sep="/"), vocabulary=vocabulary)
