import json

import numpy as np
import pytest

from behrt_jax.data import windows
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.objectives.config import ObjectiveConfig
from experiments.studies import ablations, linear_probe, variants
from tests.data.handmade import overlapping_patients


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_is_a_model_and_an_objective_of_the_small_tier(name):
    config = variants.recipe(name, seed=2, num_steps=7)
    assert (config.seed, config.train.num_steps) == (2, 7)
    unchanged = "joint recipe" if name in variants.TRAINING else "small recipe"
    base = variants.recipe(unchanged, seed=2, num_steps=7)
    assert (config.to_json() == base.to_json()) == (name == unchanged)
    config.model.vocab_size = 1000
    BEHRTConfig(**config.model)
    ObjectiveConfig(**config.objective)


def test_the_table_has_means_and_ranges_of_the_runs_that_are_there(tmp_path):
    def line(variant, seed, accuracy, num_steps=600):
        poolings = {"cls": 0.1 * seed, "mean": 0.3, "max": 0.2}
        run = {"variant": variant, "seed": seed, "num_steps": num_steps, "accuracy": accuracy, "next_visit": 0.3}
        return json.dumps({**run, "seconds": 60.4, "parameters": 1234, "poolings": poolings})

    runs = [line("small recipe", 0, 0.5), line("small recipe", 1, 0.6), line("no [SEP]", 1, 0.25)]
    (tmp_path / "results.jsonl").write_text("\n".join([*runs, line("small recipe", 2, 0.9, num_steps=5)]))
    results = ablations.read_results(tmp_path, 600)
    table = ablations.format_tables(results, 600)
    assert "2 seeds, 600 steps" in table
    assert "| small recipe | 1,234 | 0.550 [0.500, 0.600] | 0.300 [0.300, 0.300] |" in table
    assert "| no [SEP] (1 seeds) | 1,234 | 0.250 [0.250, 0.250] |" in table
    assert "| cls | 0.050 [0.000, 0.100] |" in table
    assert "hierarchical" not in table


def test_a_cut_history_holds_what_was_recorded_before_the_visit_whose_codes_it_must_tell():
    patients = overlapping_patients(0, 60)
    index = windows.index_visits(patients, 48)
    histories, targets, visits = linear_probe.cut_histories(patients, index, 60, salt=1)
    owners = index.owners[visits]
    assert histories.subject_ids.tolist() == patients.subject_ids[owners].tolist() and len(visits) > 30
    for row, (owner, visit) in enumerate(zip(owners, visits, strict=True)):
        codes = patients.codes[index.starts[0][visit] : index.starts[1][visit]]
        assert set(np.flatnonzero(targets[row])) == {code for code in codes if code > 4}
        own = np.arange(patients.offsets[owner], patients.offsets[owner + 1])
        past = own[(patients.times[own] < patients.times[index.starts[0][visit]])]
        assert patients.codes[past].tolist() == histories.codes[slice(*histories.offsets[row : row + 2])].tolist()


def test_the_probe_finds_what_the_features_tell_and_nothing_in_noise():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1200, 4)).astype(np.float32)
    targets = features @ rng.normal(size=(4, 6)) + rng.normal(size=(1200, 6)) > 2.0
    train, held = slice(0, 800), slice(800, None)
    told = linear_probe.probe(features[train], targets[train], features[held], targets[held])
    noise = rng.normal(size=features.shape).astype(np.float32)
    guessed = linear_probe.probe(noise[train], targets[train], noise[held], targets[held])
    assert told > 0.6
    assert guessed < told - 0.2
