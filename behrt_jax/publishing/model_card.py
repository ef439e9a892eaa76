"""Model card of a published encoder, with the sections of Hugging Face's model cards (Mitchell et al. 2019)."""

import collections
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from behrt_jax.data.config import DataConfig
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.evaluation import tables
from behrt_jax.training import metrics_writer
from behrt_jax.training.recipe import PretrainingRecipe
from behrt_jax.training.workdir import MACHINE_FILE

KINDS_SHOWN = 8
SIMULATED = """The patients are simulated: which diseases follow which, and how they are treated, is what the authors
of the simulator wrote down, not what happens to people. Measure it on your patients before you expect anything of it
there; pre-training on your own data is the better start."""
OTHERS = """It was trained on people. Parameters can hold traces of them: how well one can tell from this model whether
a patient was among them, or what they had, was not measured. Its vocabulary names what enough patients had."""


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
    data, model = run.recipe.data, run.recipe.model
    place = output.name if output.is_absolute() else output
    counts = {split: f"{run.report[f'patients/{split}']:,}" for split in ("train", "tuning", "held_out")}
    simulated = origin.patients == "simulated"
    return f"""---
license: {origin.license.lower()}
library_name: behrt_jax
pipeline_tag: feature-extraction
tags: [electronic-health-records, meds, behrt, jax, flax]
---

# {output.name}

A BEHRT encoder of {run.parameters:,} parameters, pre-trained on {_objectives(run.recipe)} of {counts["train"]}
{origin.patients} patients. {"Not for clinical use." if simulated else "Not a medical device; not for care."}

```python
import behrt_jax

config, vocabulary, model, params = behrt_jax.load("{place}")
```

    python -m experiments.finetune --config=configs/survival.py --config.labels=LABELS --config.pretrained={place}

## Use

To start fine-tuning or probing from, to teach, and to test software with. Not to decide anything about a patient.

## Limits

{SIMULATED if simulated else OTHERS}

- It knows {len(run.vocabulary.codes):,} codes; another is read as its nearest parent that it knows, or as `[UNK]`.
- It reads the newest {data.row_length} tokens of a history, without {_left_out(data)}.
- Its scores are of held-out patients of the same source. No other source, and no harm to a group, was measured.

## Data

`{Path(data.path).name}`, in MEDS: {counts["train"]} patients to train on, {counts["tuning"]} for tuning and
{counts["held_out"]} held out. {" ".join([origin.about, "Licence:"]).lstrip()} {origin.license}.

## Training

{run.recipe.train.num_steps:,} steps of {run.recipe.train.batch_size * run.recipe.train.accumulate_steps} rows of \
{data.row_length} tokens, seed {run.recipe.seed}; {run.cost}. Published is step
{run.step:,}, that of the lowest loss on tuning ({run.metrics["loss"]:.4f}).

| embedding / hidden / feed-forward | layers / heads | parameters | vocabulary |
|---|---|---|---|
| {model.embedding_dim} / {model.hidden_dim} / {model.feedforward_dim} | {model.num_layers} / {model.num_heads} | \
{run.parameters:,} | {len(run.vocabulary):,} |

## Scores

    python -m experiments.evaluate --workdir={place}

```
{tables.format_result(run.evaluation)}
```

## Vocabulary

Codes of {min(run.vocabulary.patients):,} train patients or more, and how many of each kind:

| kind | codes |
|---|---|
{_kinds(run.vocabulary)}

Made by `python -m experiments.publish`: every key is in `config.json`, scores by group are in `evaluation.json`,
counts of codes in `vocabulary.json`; `checkpoints/` holds the parameters alone (Orbax).
"""


def _objectives(recipe: PretrainingRecipe) -> str:
    return " and ".join(tables.TITLES[name] for name in recipe.objective.weights)


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


def _kinds(vocabulary: Vocabulary) -> str:
    kinds: collections.Counter[str] = collections.Counter()
    for code in vocabulary.codes:
        parts = code.split("//")
        kinds["//".join(parts[:2] if len(parts) > 2 else parts[:1])] += 1
    rows = [f"| `{kind}` | {number:,} |" for kind, number in kinds.most_common(KINDS_SHOWN)]
    others = sum(number for _, number in kinds.most_common()[KINDS_SHOWN:])
    return "\n".join([*rows, f"| others | {others:,} |"] if others else rows)
