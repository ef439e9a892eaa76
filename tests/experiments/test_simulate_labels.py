"""Labels of simulated patients, beside their truth and what the oracle says."""

import numpy as np
import polars as pl
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor

from behrt_jax.data import events
from behrt_jax.labels import labels
from behrt_jax.simulation import oracle, simulator
from behrt_jax.simulation import world as worlds
from behrt_jax.simulation.ceilings import write_patients
from behrt_jax.simulation.labels import choose_visits, make_labels, measure_oracle
from tests.survival_reference import concordance

DISEASES = ("diabetes", "asthma", "heart", "depression")
WORLD = worlds.make_world(0)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A data set, and what `make_labels` makes of it."""
    folder = tmp_path_factory.mktemp("labelled") / "simulated"
    write_patients(folder, 600, seed=1)
    return folder, *make_labels(str(folder), seed=0)


@pytest.fixture(scope="module")
def many():
    """Many patients, and the rows of their index visits."""
    found = simulator.simulate(WORLD, 2500, 7)
    numbers = np.arange(len(found.owner)) - found.first_visits()[found.owner]
    chosen = choose_visits(pl.DataFrame({"subject_id": found.owner, "visit": numbers}), seed=0)
    return found, found.first_visits()[chosen["subject_id"]] + chosen["visit"].to_numpy()


def test_each_patient_has_the_stages_of_one_visit_that_is_not_the_first(simulated):
    folder, made, _ = simulated
    truth = pl.read_parquet(folder / simulator.TRUTH_FILE)
    for name in DISEASES:
        found = made[name].join(truth, left_on=["subject_id", "prediction_time"], right_on=["subject_id", "time"])
        assert 350 < found["subject_id"].n_unique() == found.height == made[name].height < 500
        assert (found["boolean_value"] == (found[f"stage_{name}"] > 0)).all()
    assert found["visit"].min() == 1 and 0.5 < (found["visit"] > 3).mean() < 1


def test_the_choice_of_a_visit_depends_on_none_that_follows(simulated):
    truth = pl.read_parquet(simulated[0] / simulator.TRUTH_FILE)
    chosen = choose_visits(truth, 0).select("subject_id", "visit")
    cut = truth.join(chosen.rename({"visit": "index"}), on="subject_id").filter(pl.col("visit") <= pl.col("index"))
    assert cut.height < truth.height and choose_visits(cut, 0).select("subject_id", "visit").equals(chosen)
    assert not choose_visits(truth, 1).select("subject_id", "visit").equals(chosen)


def test_follow_up_ends_with_death_or_leaving(simulated):
    folder, made, _ = simulated
    seen = pl.concat([events.read_shard(shard) for shard in events.find_shards(folder)]).drop_nulls("time")
    died = dict(seen.filter(code=events.DEATH).select("subject_id", "time").iter_rows())
    last = dict(seen.group_by("subject_id").agg(pl.col("time").max()).iter_rows())
    assert 0.3 < made["death"]["event"].mean() < 0.9 and made["death"].height == made["heart"].height
    for subject, at, end, event in made["death"].iter_rows():
        assert (subject in died) == event and end > at
        assert end == died[subject] if event else end > last[subject]


def test_the_oracle_expects_as_many_as_there_are_and_knows_who(simulated):
    _, made, visits = simulated
    for name in DISEASES:
        said, found = visits[f"oracle_{name}"].to_numpy(), made[name]["boolean_value"].to_numpy()
        error = np.sqrt((said * (1 - said)).sum()) + 1e-6
        assert abs(found.sum() - said.sum()) < 4 * error
        assert said[found].mean() > 0.8 > 0.2 > said[~found].mean()


@pytest.mark.slow
def test_deaths_come_as_often_as_the_oracle_expects(many):
    """Also in the months to come, though patients leave: the choice of the index tells nothing of what follows."""
    found, rows = many
    owner, month = found.owner[rows], found.month[rows]
    states = oracle.states_before(WORLD, found)[rows]
    curves = oracle.survival_curves(WORLD, found.sex[owner], month, states, 240)
    seen = -np.diff(curves, axis=1) * (1 - WORLD.leave[0]) ** np.arange(240)  # of who has not left before
    left = found.end[owner] - month
    for horizon in (6, 12, 60, 240):
        expected = seen[:, :horizon].sum(axis=1)
        died = found.died[owner] & (left <= horizon)
        for group in (np.ones(len(rows), bool), month < 600, month >= 600, found.sex[owner] == 1):
            error = np.sqrt((expected * (1 - expected))[group].sum())
            assert abs((died - expected)[group].sum()) < 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("known", ["history", "state"])
def test_no_function_of_what_the_oracle_knows_orders_deaths_better(many, known):
    """Known is the history, or the world's true state: a rate by boosting on it, the risk of a year, sums and age."""
    found, rows = many
    owner, month, sex = found.owner[rows], found.month[rows], found.sex[found.owner[rows]]
    stages = worlds.stages_of(len(WORLD.diseases))
    states = oracle.states_before(WORLD, found)[rows] if known == "history" else np.eye(81)[found.state[rows]]
    left, died = found.end[owner] - month, found.died[owner]
    shares = states @ (stages[:, :, None] == np.arange(3)).reshape(81, -1)
    inputs = np.column_stack([month, sex, shares, rows - found.first_visits()[owner]])
    train, test = np.arange(len(rows)) % 2 == 0, np.arange(len(rows)) % 2 == 1
    boosted = HistGradientBoostingRegressor(loss="poisson", max_iter=60, learning_rate=0.1, max_depth=4, random_state=0)
    boosted.fit(inputs[train], (died / left)[train], left[train])
    others = {"boosting": boosted.predict(inputs), "age": month, "diseases": shares @ np.tile([0, 1, 2], 4)}
    others["risk of a year"] = 1 - oracle.survival_curves(WORLD, sex, month, states, 12)[:, 12]
    if (
        known == "history"
    ):  # what was called the oracle: it does not know that the patient is alive and seen at the index
        others["a year, from the visit before"] = oracle.death_risks(WORLD, found, 12)[rows - 1]
    best = -oracle.expected_months(WORLD, sex, month, states)
    reached = concordance(died[test], left[test], best[test])
    for name, scores in others.items():
        assert concordance(died[test], left[test], np.asarray(scores)[test]) < reached, name
    some = test & (np.cumsum(test) <= 500)
    bound = oracle.best_concordance(WORLD, sex[some], month[some], states[some])
    assert abs(concordance(died[test], left[test], best[test]) - bound) < 0.025  # four standard errors


def test_the_bound_is_what_the_oracle_reaches_on_average(many):
    """Futures of 120 people drawn 200 times from where they are: the mean C of the oracle is next to the bound."""
    found, rows = many
    rows = rows[:120]
    owner, month, state = found.owner[rows], found.month[rows], found.state[rows]
    sex, rng = found.sex[owner], np.random.default_rng(0)
    first = np.zeros((120, 120))
    drawn = draw_futures(rng, *(np.tile(known, 200) for known in (sex, month, state)))
    for left, died in zip(*(part.reshape(200, 120) for part in drawn), strict=True):
        first += died[:, None] & ((left[:, None] < left) | ((left[:, None] == left) & ~died))
    states = np.eye(81)[state]
    best, bound = -oracle.expected_months(WORLD, sex, month, states), oracle.best_concordance(WORLD, sex, month, states)
    above = (best[:, None] > best) + 0.5 * (best[:, None] == best)
    assert (above * first).sum() / first.sum() == pytest.approx(bound, abs=0.006)
    by_age = (month[:, None] > month) + 0.5 * (month[:, None] == month)
    assert (by_age * first).sum() / first.sum() < bound - 0.01


def draw_futures(rng, sex, month, state):
    """Draws months until death or leaving of people in a state, and which it is, by the world's rates alone."""
    stages, present = worlds.stages_of(len(WORLD.diseases))[state], np.arange(len(sex))
    left, died, now = worlds.MAX_MONTHS + 1 - month, np.zeros(len(sex), bool), month.copy()
    while (present := present[now[present] < worlds.MAX_MONTHS]).size:
        now[present] += 1
        years = now[present] // 12
        for disease, moves in enumerate(WORLD.moves):
            running = np.cumsum(moves[stages[present, disease], :, sex[present], years], axis=1)
            stages[present, disease] = (running < rng.random((len(present), 1))).sum(axis=1).clip(max=2)
        dies = rng.random(len(present)) < WORLD.death[worlds.state_of(stages[present].T), sex[present], years]
        gone = dies | (rng.random(len(present)) < WORLD.leave[0])
        left[present[gone]], died[present[dies]] = (now - month)[present[gone]], True
        present = present[~gone]
    return left, died


def test_the_command_writes_labels_that_can_be_read(workplace, simulated):
    folder, made, _ = simulated
    output = workplace.folder / "simulated-labels"
    done = workplace.run([f"--data={folder}", f"--output={output}"], "experiments.simulate_labels")
    assert done.returncode == 0, done.stderr
    assert "the oracle on held_out: AUROC 0.9" in done.stdout or "AUROC 1.0" in done.stdout
    for name, table in made.items():
        read = labels.read_labels([str(output / f"{name}.parquet")])
        assert read.kind == ("survival" if name == "death" else "binary") and len(read) == table.height


def test_the_oracle_of_one_outcome_is_not_measured(simulated):
    folder, made, visits = simulated
    well = made["heart"].with_columns(boolean_value=pl.lit(False))
    assert "patients have one outcome" in measure_oracle(well, "heart", visits, str(folder))


@pytest.mark.slow
def test_other_data_is_told_apart(workplace):
    given = [f"--data={workplace.data}", f"--output={workplace.folder / 'none'}"]
    done = workplace.run(given, "experiments.simulate_labels")
    assert done.returncode != 0 and "give a folder that experiments.simulate wrote" in done.stderr


def test_data_without_the_end_of_follow_up_is_to_be_simulated_again(simulated, tmp_path):
    folder = simulated[0]
    for name in ("world.npz", simulator.TRUTH_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    pl.read_parquet(folder / simulator.TRUTH_FILE).drop("months_left").write_parquet(tmp_path / simulator.TRUTH_FILE)
    with pytest.raises(ValueError, match="column 'months_left' is missing; simulate again"):
        make_labels(str(tmp_path), seed=0)
