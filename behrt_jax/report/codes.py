"""Code section of the report: a map of the code embeddings, and the nearest neighbours of each code."""

from typing import NamedTuple

import numpy as np

from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.embeddings import codes
from behrt_jax.report import quality
from behrt_jax.report.layout import Colouring, lay_out
from behrt_jax.report.maps import make_maps
from behrt_jax.report.parts import Section, Table, Text
from behrt_jax.report.source import Source

MOST_CODES, MOST_KINDS = 2000, 7
NEIGHBOURS, LISTED = 8, 30


class Codes(NamedTuple):
    """Codes to look up: their descriptions and names, and their nearest neighbours with cosines in hundredths."""

    anchor: str
    names: list[str]
    codes: list[str]
    neighbours: list[list[int]]
    cosines: list[list[int]]
    table: Table
    kind = "codes"


def code_maps(source: Source) -> Section:
    """Makes the section with a map of the code embeddings and their nearest neighbours."""
    table = codes.code_table(source.params)
    enough = np.array(source.vocabulary.patients) >= source.floor
    shown = NUM_SPECIAL + np.flatnonzero(enough)[:MOST_CODES]  # codes are sorted by frequency
    if not len(shown):
        return Section("codes", "Map of the codes", "", [Text(f"No code is of {source.floor} patients or more.")])
    kinds = [source.vocabulary.tokens[code].partition("//")[0] for code in shown]
    common = sorted(set(kinds), key=lambda kind: (-kinds.count(kind), kind))[:MOST_KINDS]
    bands = np.array([common.index(kind) if kind in common else len(common) for kind in kinds], float)
    labels = (*(each.lower() for each in common), "other kinds")[: int(bands.max()) + 1]
    colouring = Colouring("kind of code", bands, tuple(np.arange(1.0, len(labels))), labels, is_kinds=True)
    layouts = lay_out(table[shown], source.recipe.seed)
    maps = make_maps(layouts, [colouring], True, "codes")
    neighbours, cosines = codes.nearest(table, shown.tolist(), NEIGHBOURS, among=shown)
    names = [source.name(code) for code in shown]
    listing_rows = [
        [names[place], ", ".join(source.name(int(code)) for code in neighbours[place][:3])]
        for place in range(min(LISTED, len(shown)))
    ]
    listing = Table(
        "Nearest neighbours of the most frequent codes", ["code", "nearest in meaning to the model"], listing_rows
    )
    lookup = Codes(
        "codes-map",
        names,
        [source.vocabulary.tokens[code] for code in shown],
        np.searchsorted(shown, neighbours).tolist(),
        (100 * cosines).round().astype(int).tolist(),
        listing,
    )
    code_map = maps._replace(anchor="codes-map", table=maps.table._replace(caption="Codes by kind"))
    most = f"the {len(shown):,} most frequent" if len(shown) < len(table) - NUM_SPECIAL else f"all {len(shown):,}"
    few = f" Codes of fewer than {source.floor} patients are not shown." * bool((~enough).any())
    intro = (
        f"Each point is one of {most} codes. Codes lie close where the model has learned to use them alike: often "
        f"because they occur in the same visits, or in place of each other.{few}"
    )
    return Section("codes", "Map of the codes", intro, [code_map, lookup, *quality.of_codes(source)])
