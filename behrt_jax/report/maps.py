"""Patient section of the report: maps of the patient embeddings."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from behrt_jax.data import dataset
from behrt_jax.data.dataset import MICROSECONDS
from behrt_jax.data.sexes import sexes
from behrt_jax.data.windows import MINUTES_PER_YEAR
from behrt_jax.embeddings.patients import embed
from behrt_jax.evaluation.small_cells import MIN_PATIENTS, format_counts
from behrt_jax.exploration import disease_groups
from behrt_jax.report import quality
from behrt_jax.report.layout import Colouring, gather, lay_out
from behrt_jax.report.parts import Section, Table, Text
from behrt_jax.report.source import Source

logger = logging.getLogger(__name__)
MOST_PATIENTS = 3000
DISEASES = Path("configs/diseases.yaml")
AGE_BANDS = ((20.0, 40.0, 60.0, 80.0), ("under 20", "20-40", "40-60", "60-80", "80 and more"))
VISIT_BANDS = ((10.0, 30.0, 100.0, 300.0), ("under 10", "10-29", "30-99", "100-299", "300 and more"))


class PointMap(NamedTuple):
    """Points to draw, with the bands of a colouring.

    Attributes:
      title: title of the map.
      points: for each point its coordinates in the square, its radius, and its band in the first colouring.
      summary: description of the map.
    """

    title: str
    points: list[tuple[float, float, float, int]]
    summary: str


class Maps(NamedTuple):
    """Several maps of the same points, with shared colourings.

    Attributes:
      anchor: HTML anchor of the group of maps.
      maps: each of all points.
      colourings: by name: the labels and the style of the bands, and for each map the band of each point.
      hover: for each map, a text for each point; or one list for all maps.
      table: number of points in each band.
    """

    anchor: str
    maps: list[PointMap]
    colourings: dict[str, dict]
    hover: list[list[str]]
    table: Table
    kind = "maps"


def patient_maps(source: Source, diseases: Path) -> Section:
    """Makes the section with maps of the patients of all splits, by their embeddings."""
    everyone = source.patients("all")
    patients = dataset.sample(everyone, MOST_PATIENTS)
    logger.info(f"embedding {len(patients):,} patients")
    pooling = source.recipe.model.pooling
    vectors = embed(
        source.recipe.data,
        source.model,
        source.params,
        patients,
        source.recipe.evaluation.batch_size,
        poolings=(pooling,),
    )[pooling]
    colourings = colour_patients(source, patients, diseases)
    shows_patients = source.may_show(source.is_synthetic)
    legend = f"Each point is one of {len(patients):,} patients"
    if not shows_patients:
        legend = f"Each circle is {MIN_PATIENTS} or more of {len(patients):,} patients, as single ones are not shown"
    if len(patients) < len(everyone):
        legend += f" ({len(everyone):,} in all)"
    intro = (
        f"{legend}, by the encoder's states over the newest visits ({pooling} of tokens); all splits are here. Those "
        "who lie close look alike to the model; distances across the map, axes and the sizes of clumps mean nothing."
    )
    layouts = lay_out(vectors, source.recipe.seed)
    parts: list = (
        [make_maps(layouts, colourings, shows_patients, "patients")] if layouts else [Text("Too few patients to draw.")]
    )
    return Section("patients", "Map of the patients", intro, parts + quality.of_patients(source))


def colour_patients(source: Source, patients: dataset.Patients, diseases: Path) -> list[Colouring]:
    """Returns the colourings of patients: age, sex, visits, diseases."""
    ages = patients.last_times / (MICROSECONDS * MINUTES_PER_YEAR)
    sex = sexes(patients, source.vocabulary.tokens)
    visits = [len(np.unique(each[each >= 0])) for each in np.split(patients.visits, patients.offsets[1:-1])]
    is_female = np.where(sex == "", np.nan, sex == "F")
    colourings = [
        Colouring("age at the last visit", np.where(patients.has_birth, ages, np.nan), *AGE_BANDS),
        Colouring("sex", is_female, (0.5,), ("male or other", "female")),
        Colouring("visits", np.array(visits, float), *VISIT_BANDS),
    ]
    try:
        groups = disease_groups.read_groups(source.data, diseases, patients.subject_ids)
    except (ValueError, OSError) as error:
        logger.warning(f"the map is not coloured by disease ({error})")
        return colourings
    for name, has in zip(groups.names, groups.has.T, strict=True):
        colourings.append(Colouring(name.replace("_", " "), has.astype(float), (0.5,), ("without", "with")))
    return colourings


def make_maps(layouts: dict[str, np.ndarray], colourings: list[Colouring], shows_patients: bool, what: str) -> Maps:
    """Combines layouts of points, named by the plural `what`, with colourings; by cells if not shown singly."""
    rows, floor = [], 1 if shows_patients else MIN_PATIENTS
    for colouring in colourings:
        counts = [int((colouring.bands() == place).sum()) for place in range(-1, len(colouring.labels))]
        counts_by_label = dict(zip(("unknown", *colouring.labels), format_counts(counts, floor), strict=True))
        rows += [[colouring.name, label, counts_by_label[label]] for label in colouring.labels]
        rows += [[colouring.name, "unknown", counts_by_label["unknown"]]] * bool(counts[0])
    table = Table("Patients by colour", ["coloured by", "band", "patients"], rows)
    maps, hover, bands = [], [], {}
    for name, points in layouts.items():
        shown, sizes = colourings, np.ones(len(points))
        if not shows_patients:
            points, sizes, shown = gather(points, colourings)
        band_columns = np.column_stack([colouring.bands() for colouring in shown])
        for place, colouring in enumerate(shown):
            entry = bands.setdefault(
                colouring.name, {"labels": colouring.labels, "style": colouring.style, "bands": []}
            )
            entry["bands"].append(band_columns[:, place].tolist())
        radius = 2.4 if shows_patients else 3.0 * np.sqrt(np.minimum(sizes, 60) / MIN_PATIENTS)
        circles = np.column_stack(
            [points.round(1), np.broadcast_to(radius, len(points)).round(1), band_columns[:, 0]]
        ).tolist()
        summary = f"{name} of {sizes.sum():,.0f} {what}" + f" in {len(points):,} circles" * (not shows_patients) + "."
        maps.append(PointMap(name, [(x, y, r, int(band)) for x, y, r, band in circles], summary))
        hover.append([] if shows_patients else [f"{size:,} patients" for size in sizes])
    return Maps("patients-map", maps, bands, hover, table)
