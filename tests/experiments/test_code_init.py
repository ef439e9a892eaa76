"""Where the code table begins: at random or at a user's table."""

import signal

import jax
import numpy as np
import polars as pl
import pytest

from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.embeddings import code_init
from behrt_jax.embeddings.code_init import read_table
from behrt_jax.embeddings.codes import code_table
from behrt_jax.training import pretraining
from behrt_jax.training.recipe import read_recipe
from configs import small
from tests.experiments.conftest import TINY, assert_same_end

DIM = TINY["model.embedding_dim"]


@pytest.fixture
def config(workplace):
    made = small.get_config()
    data = {"data.path": str(workplace.data), "data.prepared_dir": str(workplace.folder / "prepared")}
    made.update_from_flattened_dict({**TINY, **data})
    return made


def write_table(folder, codes, values, name="table.parquet"):
    file = folder / name
    pl.DataFrame({"code": codes, "embedding": np.asarray(values).tolist()}).write_parquet(file)
    return file


def rows_of(config, vocabulary):
    """Returns the initial rows of the code table of a config."""
    return code_init.make_rows(config.code_init, vocabulary, config.model.embedding_dim)


def begin(config):
    """Returns the prepared data and the code table that a run begins with."""
    prepared, train, trained = pretraining.setup(config)
    initialize = pretraining.initialize(trained, train)
    # Not compiled as one program, in which a table of its own may change how the random rows are rounded.
    return prepared.vocabulary, code_table(initialize(jax.random.key(config.seed)))


def test_a_users_table_lands_in_the_right_rows_as_large_as_what_is_random(
    config, tmp_path, quick_compilation, messages
):
    vocabulary, drawn = begin(config)
    rng = np.random.default_rng(0)
    taken = rng.permutation(len(vocabulary.codes))[:60]  # out of order, and not all
    codes = [*(vocabulary.codes[place] for place in taken), "EXTRA//1", "[MASK]", "EXTRA//2"]
    values = 7.0 + 30.0 * rng.standard_normal((len(codes), DIM))
    config.code_init = str(write_table(tmp_path, codes, values))
    _, begun = begin(config)
    rows = NUM_SPECIAL + taken
    expected = values[:60] - values[:60].mean(axis=0)
    np.testing.assert_allclose(begun[rows], expected / expected.std() * drawn.std(), rtol=1e-4, atol=1e-6)
    others = np.setdiff1d(np.arange(len(vocabulary)), rows)
    np.testing.assert_array_equal(begun[others], drawn[others])
    share = sum(vocabulary.counts[place] for place in taken) / sum(vocabulary.counts)
    (line,) = [line for line in messages if line.startswith("code_init=")]
    assert f"60 of {len(vocabulary.codes)} codes begin with a row ({share:.1%} of what train holds)" in line
    assert "3 codes of the table are not in the vocabulary" in line


def test_a_wider_table_keeps_what_differs_most(config, tmp_path):
    prepared = prepare(DataConfig(**config.data))
    rng = np.random.default_rng(0)
    told = (
        rng.standard_normal((len(prepared.vocabulary.codes), DIM)) @ np.linalg.qr(rng.standard_normal((40, DIM)))[0].T
    )
    values = told + 50.0 + 1e-4 * rng.standard_normal(told.shape)
    config.code_init = str(write_table(tmp_path, prepared.vocabulary.codes, values))
    rows = rows_of(config, prepared.vocabulary)[NUM_SPECIAL:]
    assert rows.shape == (len(told), DIM)
    kept, given = (each @ each.T / np.square(each).sum() for each in (rows, told - told.mean(axis=0)))
    np.testing.assert_allclose(kept, given, atol=1e-5)


def test_the_code_table_alone_begins_elsewhere(config, tmp_path, quick_compilation):
    def variables(init):
        config.code_init = init
        _, train, trained = pretraining.setup(config)
        return trained.vocabulary, jax.jit(pretraining.initialize(trained, train))(jax.random.key(0))

    vocabulary, plain = variables("")
    rng = np.random.default_rng(0)
    file = write_table(tmp_path, vocabulary.codes, rng.standard_normal((len(vocabulary.codes), DIM)))
    _, started = variables(str(file))
    same = jax.tree.map(lambda one, two: bool((np.asarray(one) == np.asarray(two)).all()), started, plain)
    differing = [path for path, equal in jax.tree_util.tree_leaves_with_path(same) if not equal]
    assert [jax.tree_util.keystr(path) for path in differing] == [
        "['params']['behrt']['embedding']['codes']['embedding']"
    ]
    table, drawn = code_table(started), code_table(plain)
    assert table.std() == pytest.approx(drawn.std(), rel=0.02)
    assert (table[:NUM_SPECIAL] == drawn[:NUM_SPECIAL]).all() and (table != drawn).any(axis=1).mean() > 0.9


GOOD = ["A", "B", "C"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"code": GOOD}, "column 'embedding' is missing (found code)"),
        ({"name": GOOD, "embedding": [[1.0, 2.0]] * 3}, "column 'code' is missing (found name, embedding)"),
        ({"code": GOOD, "embedding": [1.0, 2.0, 3.0]}, "column 'embedding' is Float64; expected lists of numbers"),
        ({"code": GOOD, "embedding": [["x"]] * 3}, "column 'embedding' is List(String); expected lists of numbers"),
        ({"code": [1, 2, 3], "embedding": [[1.0, 2.0]] * 3}, "column 'code' is Int64; expected strings"),
        ({"code": ["A", "B", "A"], "embedding": [[1.0, 2.0]] * 3}, "1 of them of a code seen before"),
        ({"code": ["A", None, "C"], "embedding": [[1.0, 2.0]] * 3}, "1 without a code"),
        ({"code": GOOD, "embedding": [[1.0]] * 3}, "of width 1; expected one width of model.embedding_dim=2 or more"),
        ({"code": GOOD, "embedding": [[1.0, 2.0], [1.0], [2.0, 3.0]]}, "of width 1, 2; expected one width"),
        ({"code": GOOD, "embedding": [[1.0, 2.0], [1.0, float("nan")], [2.0, 3.0]]}, "1 rows hold NaN"),
        ({"code": GOOD, "embedding": [[1.0, 2.0], [None, 1.0], [float("inf"), 3.0]]}, "2 rows hold NaN"),
        ({"code": GOOD, "embedding": [[1.0, 2.0], None, [2.0, 3.0]]}, "1 rows are null"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_what_is_wrong(content, message, config, tmp_path):
    file = tmp_path / "table.parquet"
    pl.DataFrame(content).write_parquet(file)
    config.code_init, config.model.embedding_dim = str(file), 2
    with pytest.raises(ValueError) as caught:
        code_init.check(config.code_init, config.model.embedding_dim)
    assert str(caught.value).startswith(f"code_init={file}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_table_that_is_not_there_is_named(config, tmp_path):
    config.code_init = "skip_gram"  # a name of before
    with pytest.raises(ValueError, match="code_init=skip_gram: no such file; expected Parquet with columns code"):
        code_init.check(config.code_init, config.model.embedding_dim)
    config.code_init = str(tmp_path / "text.parquet")
    (tmp_path / "text.parquet").write_text("code,embedding")
    with pytest.raises(ValueError, match="text.parquet: not a readable parquet file"):
        code_init.check(config.code_init, config.model.embedding_dim)
    code_init.check("", config.model.embedding_dim)


def test_arrays_are_read_like_lists(tmp_path):
    values = pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int16, 2))
    pl.DataFrame({"code": ["A", "B"], "embedding": values}).write_parquet(tmp_path / "table.parquet")
    codes, read = read_table(tmp_path / "table.parquet", 2)
    assert codes == ["A", "B"] and read.dtype == np.float32 and read.tolist() == [[1, 2], [3, 4]]


def test_a_table_without_a_known_code_or_of_equal_rows_is_refused(config, tmp_path):
    vocabulary = prepare(DataConfig(**config.data)).vocabulary
    rng = np.random.default_rng(0)
    config.code_init = str(write_table(tmp_path, ["X", "Y"], rng.standard_normal((2, DIM))))
    with pytest.raises(ValueError, match="none of its 2 codes is in the vocabulary; expected names as in the data"):
        rows_of(config, vocabulary)
    write_table(tmp_path, vocabulary.codes[:3], np.ones((3, DIM)))
    with pytest.raises(ValueError, match="all its rows are alike"):
        rows_of(config, vocabulary)


def test_a_config_from_before_the_key_begins_at_random(config):
    with config.unlocked():
        del config.code_init
    assert read_recipe(config.to_dict()).code_init == ""
    assert code_init.make_rows("", None, DIM) is None


@pytest.mark.slow
def test_a_run_that_began_at_a_table_resumes_bit_for_bit(workplace, config, tmp_path):
    codes = prepare(DataConfig(**config.data)).vocabulary.codes
    file = write_table(tmp_path, codes, np.random.default_rng(0).standard_normal((len(codes), DIM)))
    printed = workplace.train(workplace.arguments("table", code_init=file))
    assert f"code_init={file}: " in printed
    arguments = workplace.arguments("table_stopped", code_init=file)
    stopped = workplace.stop_at("table_stopped", arguments, 14, signal.SIGTERM)
    assert stopped.returncode == 128 + signal.SIGTERM
    assert "resuming" in workplace.train(arguments)
    assert_same_end(workplace.folder / "table_stopped", workplace.folder / "table")
