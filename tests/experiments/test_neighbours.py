"""What neighbours measures: planted diseases at two dates, and the command on sixty bundled patients."""

import json

import numpy as np
import pytest

from behrt_jax.exploration import neighbours, tables
from behrt_jax.exploration.neighbours import Date
from behrt_jax.exploration.representations import BAG, BOTH, OWN
from tests.experiments.test_explore import DISEASES, candidate, planted

BASELINES = {"embeddings, mean pooling", BAG, "PCA of bag of codes", "chance"}


def dated(apart: float, seed: int) -> Date:
    """Patients at a date, of whom the embeddings know the first disease and the bags the second."""
    good, groups = planted(apart, seed)
    noise, _ = planted(0.0, seed + 1)
    halves = [{split: each * half for split, each in good.items()} for half in (np.eye(8)[0], np.eye(8)[1])]
    own, bag = ({split: part + 0.3 * noise[split] for split, part in half.items()} for half in halves)
    ids = {split: np.arange(len(each)) * 7 for split, each in good.items()}
    return Date(groups, ids, {OWN: [candidate("noise", noise), candidate("own", own)], BAG: [candidate("bag", bag)]})


def test_what_is_best_over_all_dates_is_taken_and_two_halves_know_more_than_one():
    dates = [dated(6.0, 0), dated(6.0, 2)]
    outcomes, chosen = neighbours.measure_run(dates)
    assert chosen[OWN] == "own" and chosen[BOTH].endswith("beside bag")
    precision = {family: each.values["precision"].mean() for family, each in outcomes.items()}
    assert precision[BOTH] > max(precision[OWN], precision[BAG]) + 0.03
    assert min(precision[OWN], precision[BAG]) > precision["chance"] + 0.1
    sick = np.flatnonzero(dates[0].groups["held_out"].has.any(axis=1)) * 7
    assert outcomes[OWN].patients.tolist() == [*sick, *sick]  # one patient at two dates is one patient


@pytest.mark.slow
def test_the_command(workplace, whole):
    (workplace.folder / "some-groups.yaml").write_text(DISEASES)
    output = workplace.folder / "neighbours.json"
    flags = [f"--diseases={workplace.folder / 'some-groups.yaml'}", f"--output={output}", "--at=2010-01-01,2015-01-01"]
    done = workplace.run([f"--workdir={whole[0]},{whole[0]}", *flags], "experiments.neighbours")
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert set(result[OWN]["baselines"]) == set(result[BOTH]["baselines"]) == BASELINES
    assert tables.format_neighbours(result) in done.stdout
    measured = result[OWN]["metrics"]["retrieval/precision"]
    assert measured["n"] % 2 == 0 and measured["n"] <= result["patients"] * 4  # the run is named twice
    failed = workplace.run([f"--workdir={whole[0]}", *flags, "--at=yesterday"], "experiments.neighbours")
    assert failed.returncode != 0 and "--at=yesterday: expected a date" in failed.stderr


def test_without_a_disease_there_is_nothing_to_measure():
    date = dated(6.0, 0)
    none = {split: each._replace(has=each.has & False) for split, each in date.groups.items()}
    with pytest.raises(ValueError, match="no tuning patient has one of the diseases"):
        neighbours.measure_run([date._replace(groups=none)])
