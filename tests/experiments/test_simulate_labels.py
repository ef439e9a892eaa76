"""Labels of simulated patients, beside their truth and what the oracle says."""

import numpy as np
import polars as pl
import pytest

from behrt_jax.data import events, simulate
from behrt_jax.data import labels as label_files
from experiments.simulate import write_patients
from experiments.simulate_labels import make_labels, measure_oracle

DISEASES = ("diabetes", "asthma", "heart", "depression")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A data set, and what `make_labels` makes of it."""
    folder = tmp_path_factory.mktemp("labelled") / "simulated"
    write_patients(folder, 600, seed=1)
    return folder, *make_labels(str(folder), seed=0)


def test_each_patient_has_the_stages_of_one_visit_that_is_not_the_first(simulated):
    folder, made, _ = simulated
    truth = pl.read_parquet(folder / simulate.TRUTH_FILE)
    several = truth.filter(pl.col("visit") > 0)["subject_id"].unique().sort().to_list()
    for name in DISEASES:
        found = made[name].join(truth, left_on=["subject_id", "prediction_time"], right_on=["subject_id", "time"])
        assert found["subject_id"].to_list() == several
        assert (found["boolean_value"] == (found[f"stage_{name}"] > 0)).all()
    assert found["visit"].min() == 1 and 0.5 < (found["visit"] > 1).mean() < 1


def test_follow_up_ends_with_death_or_what_was_seen_last(simulated):
    folder, made, _ = simulated
    seen = pl.concat([events.read_shard(shard) for shard in events.find_shards(folder)]).drop_nulls("time")
    died = dict(seen.filter(code=events.DEATH).select("subject_id", "time").iter_rows())
    last = dict(seen.group_by("subject_id").agg(pl.col("time").max()).iter_rows())
    assert 0.3 < made["death"]["event"].mean() < 0.9
    for subject, at, end, event in made["death"].iter_rows():
        assert (subject in died) == event
        assert end == (died[subject] if event else last[subject]) > at
    left_out = set(made["heart"]["subject_id"]) - set(made["death"]["subject_id"])
    assert all(subject not in died for subject in left_out) and len(left_out) < 100


def test_the_oracle_expects_as_many_as_there_are_and_knows_who(simulated):
    _, made, visits = simulated
    for name in DISEASES:
        said, found = visits[f"oracle_{name}"].to_numpy(), made[name]["boolean_value"].to_numpy()
        error = np.sqrt((said * (1 - said)).sum()) + 1e-6
        assert abs(found.sum() - said.sum()) < 4 * error
        assert said[found].mean() > 0.8 > 0.2 > said[~found].mean()


def test_the_command_writes_labels_that_can_be_read(workplace, simulated):
    folder, made, _ = simulated
    output = workplace.folder / "simulated-labels"
    done = workplace.run([f"--data={folder}", f"--output={output}"], "experiments.simulate_labels")
    assert done.returncode == 0, done.stderr
    assert "the oracle on held_out: AUROC 0.9" in done.stdout or "AUROC 1.0" in done.stdout
    for name, table in made.items():
        read = label_files.read_labels([str(output / f"{name}.parquet")], lambda line: None)
        assert read.kind == ("survival" if name == "death" else "binary") and len(read) == table.height


def test_the_oracle_of_one_outcome_is_not_measured(simulated):
    folder, made, visits = simulated
    well = made["heart"].with_columns(boolean_value=pl.lit(False))
    assert "patients have one outcome" in measure_oracle(well, "heart", visits, str(folder))


def test_other_data_is_told_apart(workplace):
    given = [f"--data={workplace.data}", f"--output={workplace.folder / 'none'}"]
    done = workplace.run(given, "experiments.simulate_labels")
    assert done.returncode != 0 and "give a folder that experiments.simulate wrote" in done.stderr
