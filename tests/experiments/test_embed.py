"""Embeddings of patients as a file, and what they are made of."""

import numpy as np
import polars as pl
import pytest

import behrt_jax
from behrt_jax.data import batches, dataset
from behrt_jax.data import windows as data_windows
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import NUM_SPECIAL, Vocabulary
from behrt_jax.embeddings import patients, snapshots
from behrt_jax.labels import follow_up
from behrt_jax.training import workdir

DATE = "2012-06-01"


@pytest.fixture(scope="module")
def run(whole):
    """The run that was never stopped, its train patients and their lives."""
    found = workdir.load(whole[0])
    prepared = prepare(found.recipe.data, found.vocabulary)
    return found, dataset.read(prepared.folder, "train"), follow_up.read_lives(found.recipe.data.path)


def embed(workplace, run: str, name: str, *flags: str):
    file = workplace.folder / name
    done = workplace.run([f"--workdir={workplace.folder / run}", f"--output={file}", *flags], "experiments.embed")
    return (pl.read_parquet(file) if done.returncode == 0 else None), done


@pytest.fixture(scope="module")
def last(workplace, whole, deaths):
    table, done = embed(workplace, "whole", "last.parquet", f"--labels={deaths}")
    assert done.returncode == 0, done.stderr
    return table, done.stdout


def test_one_row_a_patient_with_what_is_known_of_them(last, workplace, deaths):
    table, said = last
    assert table.schema["embedding"] == pl.Array(pl.Float32, 16)
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet")
    assert table.select("subject_id", "split").sort("subject_id").equals(splits.sort("subject_id"))
    assert table["sex"].unique().sort().to_list() == ["F", "M"]
    assert table["age"].is_between(0, 111).all() and table["embedding"].arr.sum().is_finite().all()
    # Labels are those of the latest prediction time.
    labels = pl.read_parquet(deaths).sort("prediction_time").unique("subject_id", keep="last")
    assert table["death_event"].count() == labels.height
    both = table.join(labels, on="subject_id")
    assert (both["death_event"] == both["event"].cast(pl.Int32)).all()
    assert f"death_event: of {labels.height} patients" in said


def test_mean_pooling_is_the_mean_of_the_states_of_the_newest_window(last, run):
    (recipe, _, _, model, params), train, _ = run
    index = data_windows.index_visits(train, recipe.data.row_length, recipe.data.use_sep)
    windows = data_windows.newest_windows(index)
    for patient in (0, 7):
        columns = data_windows.build_columns(train, index, windows, np.array([patient]), data_windows.EVALUATION_SALT)
        rows = {name: values[None] for name, values in columns.items()}
        inputs = [rows[name] for name in ("codes", "ages", "visit_ids")]
        extra = {name: rows[name] for name in ("positions", "time_deltas", "dates")}
        states = behrt_jax.encode(model, params, *inputs, np.ones_like(rows["codes"]), **extra)
        own = last[0].filter(pl.col("subject_id") == train.subject_ids[patient])["embedding"].to_numpy()[0]
        np.testing.assert_allclose(own, np.asarray(states)[0].mean(axis=0), rtol=1e-4, atol=1e-4)


def test_nothing_from_the_date_on_has_a_trace(workplace, whole, tmp_path):
    """Embeddings at a date are the same where the data ends the moment before."""
    table, done = embed(workplace, "whole", "date.parquet", f"--at={DATE}", "--pooling=rare", "--windows=all")
    assert done.returncode == 0, done.stderr
    events = pl.read_parquet(sorted((workplace.data / "data").rglob("*.parquet")))
    date = pl.lit(DATE).str.to_datetime()
    born = events.filter(pl.col("code") == "MEDS_BIRTH")
    unborn = born.filter(pl.col("time") >= date)["subject_id"]
    dead = events.filter((pl.col("code") == "MEDS_DEATH") & (pl.col("time") < date))["subject_id"]
    assert len(unborn) and len(dead)
    assert f"left out: {len(unborn)} patients not yet born" in done.stdout
    assert f"left out: {len(dead)} patients dead by then" in done.stdout
    assert not table["subject_id"].is_in([*unborn, *dead]).any() and (table["time"] == table["time"][0]).all()
    for part in ("data", "metadata"):
        (tmp_path / "cut" / part).mkdir(parents=True)
    kept = events.filter(pl.col("time").is_null() | (pl.col("time") < date) | (pl.col("code") == "MEDS_BIRTH"))
    kept.write_parquet(tmp_path / "cut" / "data" / "0.parquet")
    splits = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet")
    splits.write_parquet(tmp_path / "cut" / "metadata" / "subject_splits.parquet")
    flags = (f"--data={tmp_path / 'cut'}", f"--at={DATE}", "--pooling=rare", "--windows=all")
    without, done = embed(workplace, "whole", "cut.parquet", *flags)
    assert done.returncode == 0, done.stderr
    assert without["subject_id"].equals(table["subject_id"])
    np.testing.assert_allclose(without["embedding"].to_numpy(), table["embedding"].to_numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--at=soon", "--at=soon: expected a date such as 2015-01-01, or last"),
        pytest.param("--at=1850-01-01", "--at=1850-01-01: no patient of", marks=pytest.mark.slow),
        pytest.param("--labels=a/x.parquet,b/x.parquet", "--labels: two files are named x", marks=pytest.mark.slow),
    ],
)
def test_errors_are_one_line(workplace, whole, flag, message):
    _, done = embed(workplace, "whole", "never.parquet", flag)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (workplace.folder / "never.parquet").exists()


def test_several_windows_of_short_histories_are_their_newest(run):
    (recipe, _, vocabulary, model, params), train, _ = run
    few = dataset.take(train, np.arange(len(train)) < 4)
    short = data_windows.newest_windows(data_windows.index_visits(few, recipe.data.row_length, recipe.data.use_sep))
    assert snapshots.windows_of(recipe.data, few, whole=False) is None
    given = (recipe.data, model, params, few, recipe.evaluation.batch_size)
    newest = patients.embed(*given, poolings=("mean", "rare"), vocabulary=vocabulary)
    again = patients.embed(*given, short, ("mean", "rare"), vocabulary)
    whole = patients.embed(*given, snapshots.windows_of(recipe.data, few, whole=True), ("mean",), vocabulary)
    for name, values in newest.items():
        np.testing.assert_allclose(values, again[name], atol=1e-6)
    longer = np.diff(few.offsets) > 2 * recipe.data.row_length
    assert longer.any() and (abs(newest["mean"] - whole["mean"]).max(axis=1) > 1e-3)[longer].all()


def test_weights_of_tokens_are_those_of_plain_loops(run):
    (recipe, _, vocabulary, *_), train, _ = run
    index = data_windows.index_visits(train, recipe.data.row_length, recipe.data.use_sep)
    epoch = batches.evaluation_epoch(index)
    batch = batches.batch_of(train, index, epoch, 0, 4)
    rarity = patients.code_rarity(vocabulary)
    found = patients.token_weights(batch, index, rarity)
    for row, place in zip(*np.nonzero(batch["patient_ids"]), strict=True):
        code, own = batch["codes"][row, place], batch["patient_ids"][row] == batch["patient_ids"][row, place]
        times = (own & (batch["codes"][row] == code)).sum()
        assert found["rare"][row, place] == pytest.approx(max(rarity[code] * np.log1p(times) / times, 1e-6), rel=1e-5)
        ago = batch["visit_ids"][row][own].max() - batch["visit_ids"][row, place]
        for name, half_life in (("recent", 4), ("newer", 1), ("latest", 0.5)):
            assert found[name][row, place] == pytest.approx(max(0.5 ** (ago / half_life), 1e-6), rel=1e-5)
    assert not found["rare"][batch["patient_ids"] == 0].any()


def test_rarity_is_that_of_patients():
    vocabulary = Vocabulary(("A", "B"), (50, 9), (40, 4), {})
    found = patients.code_rarity(vocabulary)
    np.testing.assert_allclose(found, [0.0] * NUM_SPECIAL + [0.0, np.log(41 / 5)], rtol=1e-6)


@pytest.mark.parametrize("at", [None, np.datetime64("2012-06-01", "us")])
def test_a_fine_tuned_model_reads_a_mark_at_the_moment(run, at):
    found, train, lives = run
    plain, _ = snapshots.take_snapshot(train, at, lives, found.recipe.data.row_length)
    marked, _ = snapshots.take_snapshot(train, at, lives, found.recipe.data.row_length, prediction_token=True)
    np.testing.assert_array_equal(plain.times, marked.times)
    times = marked.model_inputs.origins.astype(np.int64) * dataset.MICROSECONDS + marked.model_inputs.last_times
    np.testing.assert_array_equal(snapshots.SINCE + times.astype("timedelta64[us]"), marked.times)
    assert len(plain.model_inputs) == len(marked.model_inputs)
    tokens = np.diff(plain.histories.offsets)
    assert at is not None or tokens.sum() == len(train.codes)
