"""Outcomes of known truth, drawn on sixty bundled patients: what they rest on, and the oracle beside a tiny run."""

import json

import numpy as np
import polars as pl
import pytest

from behrt_jax.data.config import DataConfig
from behrt_jax.data.events import SPLITS_FILE
from behrt_jax.evaluation import tables
from behrt_jax.evaluation.outcomes import REGRESSION, ask_oracle
from behrt_jax.labels.label_files import TRUTH_COLUMNS
from behrt_jax.labels.labels import Labels, read_labels
from behrt_jax.simulation.hazards import Hazard, TrueOutcomes, simulate_outcomes
from behrt_jax.simulation.outcome_files import choose_times, read_histories, read_truth, to_table
from configs import survival
from tests.experiments.conftest import TINY, evaluation_of
from tests.experiments.test_finetune import MODEL, arguments
from tests.survival_reference import concordance


def histories_at(data, times, prepared):
    """What `read_histories` finds."""
    config = survival.get_config()
    config.data.path, config.data.prepared_dir, config.data.min_patients = str(data), str(prepared), 3
    return read_histories(DataConfig(**config.data), times, config.history.include_at)


@pytest.fixture(scope="session")
def drawn(workplace):
    """A file made by the command, and what it printed."""
    file = workplace.folder / "simulated" / "outcomes.parquet"
    keys = [f"--config.data.prepared_dir={workplace.folder / 'prepared'}", "--config.data.min_patients=3"]
    given = [
        f"--data={workplace.data}",
        f"--output={file}",
        "--seed=3",
        "--num_rules=6",
        "--shape=1.5",
        "--scale=700",
        *keys,
    ]
    done = workplace.run(given, "experiments.simulate_outcomes")
    assert done.returncode == 0, done.stderr
    return file, done.stdout


def test_the_file_is_labels_of_one_time_a_patient(workplace, drawn):
    file, printed = drawn
    table, labels = pl.read_parquet(file), read_labels([file])
    assert table.columns == ["subject_id", "prediction_time", "event_time", "event", *TRUTH_COLUMNS]
    assert table["subject_id"].n_unique() == table.height == len(labels) > 45
    assert labels.kind == "survival" and labels.names == ("event",) and labels.truth is not None
    np.testing.assert_array_equal(labels.truth, table.select(TRUTH_COLUMNS).to_numpy())
    assert table["weibull_scale"].unique().to_list() == [700] and table["weibull_shape"].unique().to_list() == [1.5]
    assert f"{table.height} rows of {table.height} patients" in printed and f"{labels.events.sum()} events" in printed
    reached = concordance(labels.events > 0, labels.days, labels.truth[:, 0])
    assert f"who knows the log hazard: {reached:.4f}" in printed and reached > 0.6
    shown = printed.split("in brackets):\n")[1].splitlines()[:6]
    weights = [abs(float(line.split()[0])) for line in shown]
    assert weights == sorted(weights, reverse=True) and sum("days after the first" in line for line in shown) == 2
    assert "of histories have more codes than a row of 256 tokens holds" in printed
    events = pl.read_parquet(workplace.data / "data" / "0.parquet")
    visits = events.join(table, on="subject_id").filter(pl.col("time") < pl.col("prediction_time"))
    counts = visits.drop_nulls("visit_id").group_by("subject_id").agg(pl.col("visit_id").n_unique())
    assert counts.height == table.height and (counts["visit_id"] >= 3).all() and counts["visit_id"].n_unique() > 10


def test_all_is_a_function_of_the_seed(workplace, drawn):
    first, again, other = (choose_times(str(workplace.data), 3, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.prediction_times, again.prediction_times)
    assert (first.prediction_times != other.prediction_times).mean() > 0.8
    times, patients, tokens = histories_at(workplace.data, first, workplace.folder / "prepared")
    some, same = (simulate_outcomes(patients, times.prediction_times, tokens, seed=3) for _ in range(2))
    assert to_table(times, some).equals(to_table(times, same))
    written = pl.read_parquet(drawn[0])
    assert written["prediction_time"].to_list() == to_table(times, some)["prediction_time"].to_list()


def test_the_log_hazard_is_of_the_raw_events_strictly_before(workplace, drawn):
    """Rule by rule from the files, event by event; the truth that is written gives the log hazard of the labels."""
    hazard, table = read_truth(drawn[0].with_suffix(".truth.json")), pl.read_parquet(drawn[0])
    events = pl.read_parquet(workplace.data / "data" / "0.parquet").drop_nulls("time")
    births = events.filter(code="MEDS_BIRTH").select("subject_id", born="time")
    known = events.join(table, on="subject_id").join(births, on="subject_id")
    known = known.filter(pl.col("time") < pl.col("prediction_time")).unique(
        ["subject_id", "visit_id", "code"], keep="first", maintain_order=True
    )
    for subject, expected in zip(table["subject_id"], table["log_hazard"], strict=True):
        own, values = known.filter(subject_id=subject), []
        codes, now = own["code"].to_numpy(), own["prediction_time"].to_numpy()[0]
        days = (own["time"] - own["born"]).dt.total_microseconds().to_numpy() / 86_400e6
        age = (now - own["born"].to_numpy()[0]) / np.timedelta64(1, "D")
        for rule in hazard.rules:
            first, second = (days[np.isin(codes, group)] for group in (rule.first, rule.second))
            if rule.kind == "order":
                values.append(len(first) and len(second) and 0 < second.min() - first.min() <= rule.high)
            elif rule.kind == "age":
                values.append(np.log1p(((first / 365.25 >= rule.low) & (first / 365.25 < rule.high)).sum()))
            else:
                values.append(len(first) and rule.low <= age - first.max() < rule.high)
        found = (np.array(values, float) - hazard.centres) / hazard.scales @ hazard.coefficients
        assert found == pytest.approx(expected, abs=1e-6), subject


def test_the_truth_of_earlier_versions_is_refused(tmp_path):
    file = tmp_path / "outcomes.truth.json"
    file.write_text(json.dumps({"features": ["age"], "pairs": [], "coefficients": [1.0]}))
    with pytest.raises(
        ValueError, match=r"truth\.json: not the rules of simulated outcomes .*rules.*; draw them again"
    ):
        read_truth(file)


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
    expected = concordance(*known)
    reached = {name: each["survival/c_index"]["value"] for name, each in found.items() if name in ("metrics", "oracle")}
    assert reached["oracle"] == pytest.approx(expected, abs=1e-6)
    difference = found["versus"]["oracle"]["survival/c_index"]
    assert difference["value"] == pytest.approx(reached["metrics"] - expected, abs=1e-6)
    assert difference["low"] < difference["high"] and found["baselines"] == {}
    assert "survival/calibration_slope" in found["oracle"]
    assert "oracle (exact)" in done.stdout and "difference to oracle: C-index" in tables.format_result(found)

    both = workplace.folder / "both"
    given = arguments(workplace, "survival", file, "both", **chosen, train__num_steps=4, survival__num_bins=3)
    alone = workplace.folder / "oracle"
    given += ["--config.head.features=('regression',)", "--nobaselines", f"--compare_to={alone}"]
    done = workplace.run(given, "experiments.finetune")
    assert done.returncode == 0, done.stderr
    rows, found = {"BEHRT", REGRESSION, str(alone)}, evaluation_of(both)
    assert {"BEHRT", *found["baselines"]} == rows == {*found["versus_oracle"]}
    models = {"BEHRT": found["metrics"], **found["baselines"]}
    for name, difference in found["versus_oracle"].items():
        less = models[name]["survival/c_index"]["value"] - expected
        assert difference["survival/c_index"]["value"] == pytest.approx(less, abs=1e-6)
    assert "less the oracle" in done.stdout and REGRESSION in done.stdout


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_the_oracle_says_the_true_risk(tmp_path, kind):
    rng, none = np.random.default_rng(0), Hazard((), *np.zeros((3, 0)))
    truth = TrueOutcomes(rng.exponential(900, 300) + 1, rng.random(300) < 0.7, rng.normal(size=300), none, 700, 1.5)
    file = tmp_path / f"labels.{kind}"
    ids, now, days = np.arange(300), np.full(300, np.datetime64("2020-01-01", "us")), np.full(300, np.nan)
    table = to_table(Labels("times", (), ids, now, np.zeros((300, 0)), days, np.zeros(300, int)), truth)
    getattr(table, f"write_{kind}")(file)
    labels = read_labels([file])
    np.testing.assert_allclose(labels.days, truth.days, atol=1e-8)
    np.testing.assert_array_equal(labels.events > 0, truth.events)
    said = ask_oracle(labels)
    days = np.array([1.0, 365.0, 5000.0])
    np.testing.assert_allclose(said.risks(days)[:, 0], 1 - truth.survival(days), atol=1e-12)
    np.testing.assert_allclose(said.scores[:, 0], truth.log_hazard, rtol=1e-12)
    lacking = table.with_columns(log_hazard=pl.when(pl.col("subject_id") > 2).then("log_hazard"))
    getattr(lacking, f"write_{kind}")(file)
    with pytest.raises(ValueError, match="column 'log_hazard' is null or NaN in 3 of 300 rows"):
        read_labels([file])
    getattr(table.drop("weibull_shape"), f"write_{kind}")(file)
    assert read_labels([file]).truth is None
