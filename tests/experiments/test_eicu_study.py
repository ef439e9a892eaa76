"""The table of the study of eICU: every model on the same stays, the best first, with paired differences."""

import numpy as np
import pytest

from behrt_jax.metrics import classification
from experiments.studies import eicu


def test_models_are_measured_on_the_same_stays_and_ranked():
    rng = np.random.default_rng(0)
    died, patients = rng.random(300) < 0.3, np.arange(300) // 2
    noise = {eicu.OURS: 0.0, eicu.TUNED: 0.5, "age": 3.0}
    scores = {name: 1 / (1 + np.exp(-(2.0 * died - 1 + size * rng.normal(size=300)))) for name, size in noise.items()}
    found = {name: classification.measure(each, died, patients) for name, each in scores.items()}
    assert (
        found[eicu.OURS]["classification/auroc"].value == 1.0 and found["age"]["classification/auroc"].patients == 150
    )
    table = [line.split("|")[1:-1] for line in eicu.format_markdown(found).splitlines()]
    assert [cells[0].strip() for cells in table[2:]] == [eicu.OURS, eicu.TUNED, "age"]
    gap = 1.0 - found["age"]["classification/auroc"].value
    assert not table[2][5].strip() and float(table[4][5].split()[0]) == pytest.approx(gap, abs=6e-4)
    assert all(chosen.meta.root_names() for chosen in eicu.COHORTS.values())
