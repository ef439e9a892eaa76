"""Model card of a published encoder, with the sections of Hugging Face's model cards (Mitchell et al. 2019)."""

import collections
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from behrt_jax.data.config import DataConfig
from behrt_jax.data.events import SPLITS
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.evaluation import tables
from behrt_jax.training import metrics_writer
from behrt_jax.training.recipe import PretrainingRecipe
from behrt_jax.training.workdir import MACHINE_FILE

KINDS_SHOWN = 8
TEMPLATES = Path(__file__).parent / "templates"


class Origin(NamedTuple):
    """The user's statement on an encoder: who the patients are, the licence, and where the data comes from."""

    patients: str
    license: str
    about: str


class Run(NamedTuple):
    """The facts about a run that its card states."""

    recipe: PretrainingRecipe
    vocabulary: Vocabulary
    parameters: int
    step: int
    metrics: dict[str, float]
    evaluation: dict
    report: dict
    cost: str


def write(output: Path, run: Run, origin: Origin) -> str:
    """Returns the card as Markdown."""
    recipe, loader = run.recipe, FileSystemLoader(TEMPLATES)
    page = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    page.filters["number"] = "{:,}".format
    return page.get_template("model_card.md").render(
        output=output,
        place=output.name if output.is_absolute() else output,
        run=run,
        origin=origin,
        simulated=origin.patients == "simulated",
        data=recipe.data,
        model=recipe.model,
        train=recipe.train,
        source=Path(recipe.data.path).name,
        objectives=" and ".join(tables.TITLES[name] for name in recipe.objective.weights),
        patients={split: run.report[f"patients/{split}"] for split in SPLITS},
        left_out=_left_out(recipe.data),
        scores=tables.format_result(run.evaluation),
        kinds=_kinds(run.vocabulary),
    )


def _left_out(data: DataConfig) -> str:
    patterns = [f"`{pattern}`" for pattern in data.codes_exclude]
    return f"codes such as {', '.join(patterns[:4])} (`data.codes_exclude`)" if patterns else "any code left out"


def describe_cost(workdir: Path, recipe: PretrainingRecipe, hardware: str) -> str:
    """Describes how long a run took at its median speed, and on what hardware."""
    machine = workdir / MACHINE_FILE
    if not hardware and machine.exists():
        hardware = ", ".join(json.loads(machine.read_text()).values())
    speed = float(np.median(metrics_writer.read_series(workdir, "train", "tokens_per_second", recipe.train.num_steps)))
    train = recipe.train
    tokens = train.num_steps * train.batch_size * train.accumulate_steps * recipe.data.row_length
    duration = f"about {tokens / speed / 60:,.0f} minutes at {speed:,.0f} tokens a second"
    return duration + (f" on {hardware}" if hardware else "")


def _kinds(vocabulary: Vocabulary) -> list[tuple[str, int]]:
    """Counts the codes of the most common kinds, which are the first two parts of long names, and of the others."""
    parts = [code.split("//") for code in vocabulary.codes]
    kinds = collections.Counter("//".join(each[:2] if len(each) > 2 else each[:1]) for each in parts).most_common()
    others = sum(count for _, count in kinds[KINDS_SHOWN:])
    return [(f"`{kind}`", count) for kind, count in kinds[:KINDS_SHOWN]] + [("others", others)] * bool(others)
