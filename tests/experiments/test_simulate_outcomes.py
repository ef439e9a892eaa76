"""Outcomes of known truth, drawn on sixty bundled patients: what they rest on, and the oracle beside a tiny run."""

import numpy as np
import polars as pl
import pytest

from behrt_jax.data.events import SPLITS_FILE
from behrt_jax.data.label_tables import TRUTH_COLUMNS
from behrt_jax.data.labels import Labels, read_labels
from behrt_jax.data.outcomes import simulate_outcomes
from configs import survival
from experiments import tables
from experiments.evaluate_outcomes import ask_oracle
from experiments.simulate_outcomes import choose_times, find_features, to_table
from tests import survival_reference
from tests.experiments.conftest import TINY, evaluation_of
from tests.experiments.test_finetune import MODEL, arguments


def silent(line: str) -> None:
    """Says nothing."""


def features_at(data, times, prepared):
    """The times that have a history, and a dense table of their features by name."""
    config = survival.get_config()
    config.data.path, config.data.prepared_dir, config.data.min_patients = str(data), str(prepared), 3
    config.data.row_length = 8192  # whole histories
    times, table, names = find_features(config, times, silent)
    return times, dict(zip(names, table.toarray().T, strict=True))


@pytest.fixture(scope="session")
def drawn(workplace):
    """A file made by the command, and what it printed."""
    file = workplace.folder / "simulated" / "outcomes.parquet"
    keys = [f"--config.data.prepared_dir={workplace.folder / 'prepared'}", "--config.data.min_patients=3"]
    given = [f"--data={workplace.data}", f"--output={file}", "--seed=3", "--shape=1.5", "--scale=700", *keys]
    done = workplace.run(given, "experiments.simulate_outcomes")
    assert done.returncode == 0, done.stderr
    return file, done.stdout


def test_the_file_is_labels_of_one_time_a_patient(workplace, drawn):
    file, printed = drawn
    table, labels = pl.read_parquet(file), read_labels([file], silent)
    assert table.columns == ["subject_id", "prediction_time", "event_time", "event", *TRUTH_COLUMNS]
    assert table["subject_id"].n_unique() == table.height == len(labels) > 45
    assert labels.kind == "survival" and labels.names == ("event",) and labels.truth is not None
    np.testing.assert_array_equal(labels.truth, table.select(TRUTH_COLUMNS).to_numpy())
    assert table["weibull_scale"].unique().to_list() == [700] and table["weibull_shape"].unique().to_list() == [1.5]
    assert f"{table.height} rows of {table.height} patients" in printed and f"{labels.events.sum()} events" in printed
    reached = survival_reference.concordance(labels.events > 0, labels.days, labels.truth[:, 0])
    assert f"who knows the log hazard: {reached:.4f}" in printed and reached > 0.6
    shown = [line.split() for line in printed.split("products of two:\n")[1].splitlines()[:13]]
    weights = [abs(float(words[0])) for words in shown]
    assert weights == sorted(weights, reverse=True) and sum("x" in words for words in shown) == 3
    events = pl.read_parquet(workplace.data / "data" / "0.parquet")
    visits = events.join(table, on="subject_id").filter(pl.col("time") < pl.col("prediction_time"))
    counts = visits.drop_nulls("visit_id").group_by("subject_id").agg(pl.col("visit_id").n_unique())
    assert counts.height == table.height and (counts["visit_id"] >= 3).all() and counts["visit_id"].n_unique() > 10


def test_all_is_a_function_of_the_seed(workplace, drawn):
    first, again, other = (choose_times(str(workplace.data), 3, seed, silent) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.prediction_times, again.prediction_times)
    assert (first.prediction_times != other.prediction_times).mean() > 0.8
    times, table = features_at(workplace.data, first, workplace.folder / "prepared")
    some, same = (simulate_outcomes(np.stack([*table.values()], axis=1), seed=3) for _ in range(2))
    assert to_table(times, some).equals(to_table(times, same))
    written = pl.read_parquet(drawn[0])
    assert written["prediction_time"].to_list() == to_table(times, some)["prediction_time"].to_list()


def test_features_are_of_what_came_strictly_before(workplace, tmp_path):
    """Later events get each other's codes; and counts are those of the raw events."""
    times = choose_times(str(workplace.data), 3, 0, silent)
    events = pl.read_parquet(workplace.data / "data" / "0.parquet").join(
        pl.read_parquet(workplace.data / SPLITS_FILE), on="subject_id"
    )
    chosen = pl.DataFrame({"subject_id": times.subject_ids, "prediction_time": times.prediction_times})
    events = events.join(chosen, on="subject_id", how="left").with_row_index()
    later = events.filter((pl.col("time") >= pl.col("prediction_time")) & ~pl.col("code").str.starts_with("MEDS_"))
    parts = []
    for part in later.partition_by("split"):  # values stay with codes, so that the bins of train stay
        said = part.select("code", "numeric_value").sample(fraction=1, shuffle=True, seed=1)
        parts.append(part.select("index").with_columns(said.get_columns()))
    moved = events.update(pl.concat(parts), on="index", include_nulls=True)
    assert (moved["code"] != events["code"]).sum() > 1000
    for part in ("data", "metadata"):
        (tmp_path / part).mkdir()
    moved.drop("index", "split", "prediction_time").write_parquet(tmp_path / "data" / "0.parquet")
    (tmp_path / SPLITS_FILE).write_bytes((workplace.data / SPLITS_FILE).read_bytes())
    own, before = features_at(workplace.data, times, workplace.folder / "prepared")
    _, after = features_at(tmp_path, times, tmp_path / "prepared")
    shared = [name for name in before if name in after]
    assert len(shared) > 500
    for name in shared:
        np.testing.assert_allclose(after[name], before[name], atol=1e-9, err_msg=name)

    earlier = events.filter(pl.col("time") < pl.col("prediction_time"))
    code = "ENCOUNTER//wellness"
    counts = earlier.filter(code=code).group_by("subject_id").agg(pl.col("visit_id").n_unique())
    counts = pl.DataFrame({"subject_id": own.subject_ids}).join(counts, on="subject_id", how="left").fill_null(0)
    assert counts["visit_id"].n_unique() > 10
    np.testing.assert_allclose(np.expm1(before[f"{code} (log count)"]), counts["visit_id"], atol=1e-9)
    births = events.filter(code="MEDS_BIRTH").sort("subject_id").filter(pl.col("subject_id").is_in(own.subject_ids))
    decades = (own.prediction_times - births["time"].to_numpy()) / np.timedelta64(1, "D") / 3652.5
    np.testing.assert_allclose(before["age"], decades, atol=1e-3)


@pytest.mark.slow
def test_the_oracle_stands_beside_a_run(workplace, drawn):
    """Though a label without a patient comes first, each history keeps its own truth."""
    table = pl.read_parquet(drawn[0])
    stranger = table.sort("subject_id")[:1].with_columns(
        subject_id=pl.col("subject_id").min() - 1, log_hazard=pl.lit(9.0)
    )
    file = workplace.folder / "with_a_stranger.parquet"
    pl.concat([stranger, table]).write_parquet(file)
    chosen = {**{key.replace(".", "__"): TINY[key] for key in MODEL}, "data__min_patients": 3, "data__row_length": 64}
    given = arguments(workplace, "survival", file, "oracle", **chosen, train__num_steps=4, survival__num_bins=3)
    done = workplace.run([*given, "--nobaselines"], "experiments.finetune")
    assert done.returncode == 0, done.stderr
    found = evaluation_of(workplace.folder / "oracle")
    splits = pl.read_parquet(workplace.data / SPLITS_FILE).filter(split="held_out")
    held_out = table.join(splits, on="subject_id", how="semi")
    assert found["patients"] == held_out.height < table.height
    days = (held_out["event_time"] - held_out["prediction_time"]).dt.total_microseconds() / 86_400e6
    known = held_out["event"].to_numpy(), days.to_numpy(), held_out["log_hazard"].to_numpy()
    expected = survival_reference.concordance(*known)
    reached = {name: each["survival/c_index"]["value"] for name, each in found.items() if name in ("metrics", "oracle")}
    assert reached["oracle"] == pytest.approx(expected, abs=1e-6)
    difference = found["versus"]["oracle"]["survival/c_index"]
    assert difference["value"] == pytest.approx(reached["metrics"] - expected, abs=1e-6)
    assert difference["low"] < difference["high"] and found["baselines"] == {}
    assert "survival/calibration_slope" in found["oracle"]
    assert "oracle (the ceiling)" in done.stdout and "difference to oracle: C-index" in tables.format_result(found)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_oracle_says_the_true_risk(tmp_path, kind):
    truth = simulate_outcomes(np.random.default_rng(0).normal(size=(300, 12)), seed=0, shape=1.5, scale=700)
    file = tmp_path / f"labels.{kind}"
    ids, now, days = np.arange(300), np.full(300, np.datetime64("2020-01-01", "us")), np.full(300, np.nan)
    table = to_table(Labels("times", (), ids, now, np.zeros((300, 0)), days, np.zeros(300, int)), truth)
    getattr(table, f"write_{kind}")(file)
    labels = read_labels([file], silent)
    np.testing.assert_allclose(labels.days, truth.days, atol=1e-8)
    np.testing.assert_array_equal(labels.events > 0, truth.events)
    said = ask_oracle(labels)
    days = np.array([1.0, 365.0, 5000.0])
    np.testing.assert_allclose(said.risks(days)[:, 0], 1 - truth.survival(days), atol=1e-12)
    np.testing.assert_allclose(said.scores[:, 0], truth.log_hazard, rtol=1e-12)
    lacking = table.with_columns(log_hazard=pl.when(pl.col("subject_id") > 2).then("log_hazard"))
    getattr(lacking, f"write_{kind}")(file)
    with pytest.raises(ValueError, match="column 'log_hazard' is null or NaN in 3 of 300 rows"):
        read_labels([file], silent)
    getattr(table.drop("weibull_shape"), f"write_{kind}")(file)
    assert read_labels([file], silent).truth is None
