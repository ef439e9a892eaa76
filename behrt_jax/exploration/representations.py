"""Representations of patients to compare: embeddings, bags of codes, and principal components of the bags."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize

from behrt_jax.data import dataset
from behrt_jax.data.code_counts import count_codes
from behrt_jax.embeddings.patients import HALF_LIVES
from behrt_jax.metrics.embeddings import directions

OWN, MEAN, BAG, PRINCIPAL = "embeddings", "embeddings, mean pooling", "bag of codes", "PCA of bag of codes"
BOTH = "embeddings beside the bag"
LENGTHS = (0.5, 1.0, 2.0)  # norms of embeddings that are concatenated with bags of norm 1
# Weightings of codes: the half-life of counts in visits, and a function of (N, V) counts and (V,) rarities.
WEIGHTINGS: dict[str, tuple[float, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "counts": (np.inf, lambda counts, rarity: counts),
    "log counts": (np.inf, lambda counts, rarity: np.log1p(counts)),
    "tf-idf": (np.inf, lambda counts, rarity: np.log1p(counts) * rarity),
    "log counts, newer": (HALF_LIVES["newer"], lambda counts, rarity: np.log1p(counts)),
}
Splits = dict[str, np.ndarray]  # (N, D) by split


class Candidate(NamedTuple):
    """A named variant of a representation, and a function that computes it for each split."""

    name: str
    make: Callable[[], Splits]


def of_embeddings(pooled: dict[str, Splits]) -> list[Candidate]:
    """Returns the candidates of embeddings: each pooling, with and without centring."""
    return [each for name, splits in pooled.items() for each in _centred_or_not(name, lambda splits=splits: splits)]


def of_bags(histories: dict[str, dataset.Patients], rarity: np.ndarray, components: int = 0) -> list[Candidate]:
    """Returns the candidates of bags of codes: the `WEIGHTINGS` of counts, with and without centring.

    Args:
      histories: by split.
      rarity: (V,), from `embeddings.patients.code_rarity`.
      components: number of principal components of train to use in place of the (N, V) bags; 0 for the bags.
    """
    candidates = []
    for name, (half_life, weigh) in WEIGHTINGS.items():
        bags = functools.partial(_bags, histories, rarity, half_life, weigh)
        # Components are slow to compute and are cached; bags are large and fast to recompute.
        make = functools.cache(functools.partial(_principal, bags, components)) if components else bags
        candidates += _centred_or_not(name, make)
    return candidates


def of_both(embeddings: Candidate, bags: Candidate) -> list[Candidate]:
    """Returns candidates that concatenate embeddings and bags, which adds their cosines, for several weights."""

    def joined(length: float) -> Splits:
        vectors, codes = embeddings.make(), bags.make()
        return {split: normalize(np.concatenate([length * vectors[split], codes[split]], axis=1)) for split in vectors}

    return [
        Candidate(f"{embeddings.name}, times {length:g}, beside {bags.name}", functools.partial(joined, length))
        for length in LENGTHS
    ]


def _centred_or_not(name: str, make: Callable[[], Splits]) -> list[Candidate]:
    def scaled(centre: bool) -> Splits:
        splits = make()
        transform = directions(splits["train"], centre)
        return {split: transform(values) for split, values in splits.items()}

    return [
        Candidate(name + label, functools.partial(scaled, centre))
        for centre, label in ((False, ""), (True, ", centred"))
    ]


def _bags(histories: dict[str, dataset.Patients], rarity: np.ndarray, half_life: float, weigh: Callable) -> Splits:
    counts = {split: count_codes(each, len(rarity), half_life) for split, each in histories.items()}
    return {split: weigh(each, rarity).astype(np.float32) for split, each in counts.items()}


def _principal(bags: Callable[[], Splits], components: int) -> Splits:
    splits = bags()
    pca = PCA(min(components, *splits["train"].shape), svd_solver="covariance_eigh").fit(splits["train"])
    return {split: pca.transform(values).astype(np.float32) for split, values in splits.items()}
