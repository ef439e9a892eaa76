"""What explore measures: planted diseases in made-up embeddings, and the command on sixty bundled patients."""

import json

import numpy as np
import pytest

from behrt_jax.data import code_counts
from behrt_jax.exploration import choices, measures, subtypes, tables
from behrt_jax.exploration.disease_groups import DiseaseGroups
from behrt_jax.exploration.representations import BAG, MEAN, OWN, PRINCIPAL, Candidate
from behrt_jax.metrics import bootstrap, embeddings

SIZES = {"train": 160, "tuning": 80, "held_out": 80}
DISEASES = """
among: [CONDITION//*]
groups:
  cystitis: {codes: [CONDITION//SNOMED//307426000]}
  sprain: {descriptions: ["^sprain .morphologic", "sprain of ankle"]}
"""


def planted(apart: float, seed: int = 0):
    """Embeddings in which each of two diseases moves a patient, by split, and who has which."""
    rng, splits, groups = np.random.default_rng(seed), {}, {}
    for split, number in SIZES.items():
        has = np.random.default_rng(len(split)).random((number, 2)) < 0.4
        splits[split] = (rng.normal(size=(number, 8)) + apart * has @ np.eye(8)[:2]).astype(np.float32)
        groups[split] = DiseaseGroups(("gout", "flu"), has, np.zeros_like(has))
    return splits, groups


def candidate(name: str, splits) -> Candidate:
    return Candidate(name, lambda: splits)


@pytest.fixture(scope="module")
def measured():
    good, groups = planted(6.0)
    noise, _ = planted(0.0, seed=1)
    families = {
        OWN: [candidate("noise", noise), candidate("good", good)],
        MEAN: [candidate("noise", noise)],
        BAG: [candidate("noise", noise)],
        PRINCIPAL: [candidate("good", good)],
    }
    return choices.measure(families, groups), groups


def test_the_best_on_tuning_is_measured_and_noise_is_chance(measured):
    result, groups = measured
    assert result["chosen"]["groups"][OWN] == result["chosen"]["retrieval"][OWN] == "good"
    retrieval = result["retrieval"]
    assert retrieval["metrics"]["retrieval/precision"]["value"] > 0.95
    assert retrieval["versus"][PRINCIPAL]["retrieval/precision"]["value"] == 0
    noise, chance = (retrieval["baselines"][name]["retrieval/precision"] for name in (BAG, "chance"))
    assert noise["low"] < chance["value"] < noise["high"]
    assert retrieval["versus"][BAG]["retrieval/precision"]["low"] > 0.2
    assert result["groups"]["metrics"]["groups/silhouette"]["value"] > 0.4
    assert abs(result["groups"]["baselines"][BAG]["groups/silhouette"]["value"]) < 0.05
    assert sum(result["groups"]["members"].values()) == (~groups["held_out"].has.all(axis=1)).sum()
    assert set(result["groups"]["members"]) == {"none", "gout", "flu"}
    assert result["probe"]["metrics"]["probe/auroc"]["low"] > 0.95
    assert result["probe"]["baselines"][BAG]["probe/auroc"]["value"] < 0.65
    assert "retrieval_later" not in result


def test_the_interval_of_the_silhouette_is_that_of_resampled_patients(measured):
    splits, groups = planted(6.0)
    rows, labels = measures.exclusive(groups, "held_out")
    weights = bootstrap.resamples(len(rows))
    expected = embeddings.resampled_silhouettes(splits["held_out"][rows], labels, weights)
    found = measured[0]["groups"]
    assert found["metrics"]["groups/silhouette"]["low"] == pytest.approx(np.quantile(expected, 0.025))
    assert found["metrics"]["groups/silhouette"]["n"] == len(rows)
    assert found["versus"][PRINCIPAL]["groups/silhouette"] == {"value": 0, "low": 0, "high": 0}  # paired
    assert found["versus"][BAG]["groups/silhouette"]["low"] > 0.3


def test_groups_too_small_to_measure_are_an_error():
    _, groups = planted(0.0)
    few = {split: each._replace(has=each.has & False) for split, each in groups.items()}
    with pytest.raises(ValueError, match="--diseases: 1 groups of patients with one disease or none have"):
        measures.exclusive(few, "held_out")


def test_later_diseases_of_those_who_do_not_have_them_are_measured_apart():
    good, groups = planted(6.0)
    later = {split: each._replace(has=each.has & False, later=each.has) for split, each in groups.items()}
    mixed = {split: each._replace(has=groups[split].has) for split, each in later.items()}
    result = choices.measure({OWN: [candidate("good", good)], BAG: [candidate("good", good)]}, mixed)
    assert result["retrieval_later"]["metrics"] == result["retrieval"]["metrics"]


def test_clusters_that_are_there_are_found_and_come_again():
    rng = np.random.default_rng(0)
    centres = 8 * np.eye(6)[:3]
    draw = {split: rng.normal(size=(number, 6)) + centres[np.arange(number) % 3] for split, number in SIZES.items()}
    fit, number = subtypes.choose_clusters(draw, 0)
    assert number == 3 and len(np.unique(fit.predict(draw["held_out"]))) == 3
    assert subtypes.choose_clusters(draw, 5)[1] == 5
    with pytest.raises(ValueError, match="--clusters=160: expected fewer than the 160 patients of train"):
        subtypes.choose_clusters(draw, 160)


def test_counts_fade_by_visits(bundled, bundled_train):
    size = len(bundled.vocabulary)
    plain = code_counts.count_codes(bundled_train, size)
    fading = code_counts.count_codes(bundled_train, size, half_life=4.0)
    patient = slice(*bundled_train.offsets[3:5])
    codes, visits = bundled_train.codes[patient], bundled_train.visits[patient]
    code = np.bincount(codes[(visits >= 0) & (codes > 4)]).argmax()
    own = visits[(codes == code) & (visits >= 0)]
    assert plain[3, code] == len(own)
    assert fading[3, code] == pytest.approx((0.5 ** ((visits.max() - own) / 4.0)).sum(), rel=1e-4)
    assert not plain[:, :5].any()


@pytest.mark.slow
def test_the_command(workplace, whole):
    (workplace.folder / "groups.yaml").write_text(DISEASES)
    output = workplace.folder / "quality.json"
    flags = [f"--workdir={whole[0]}", f"--diseases={workplace.folder / 'groups.yaml'}", f"--output={output}"]
    done = workplace.run([*flags, "--at=2015-01-01", "--clusters=2"], "experiments.explore")
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["at"] == "2015-01-01" and result["windows"] == "all"
    assert set(result["retrieval"]["baselines"]) == {MEAN, BAG, PRINCIPAL, "chance"}
    clusters = result["subtypes"]["clusters"]
    assert sum(sum(each["patients"].values()) for each in clusters) == sum(result["patients"].values())
    assert all(code["share"] > code["share_elsewhere"] for each in clusters for code in each["codes"])
    followed = result["subtypes"]["survival"]
    assert (
        sum(each["patients"] for each in followed["curves"]) + followed["not_followed"]
        == result["patients"]["held_out"]
    )
    assert tables.format_quality(result) in done.stdout
    broken = workplace.run([*flags[:1], f"--diseases={workplace.folder / 'none.yaml'}"], "experiments.explore")
    assert broken.returncode == 2 and "none.yaml: no such file" in broken.stderr
