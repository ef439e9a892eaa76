"""A run is tied to its labels, its patients and the pre-trained run it began from: others under the same names."""

import contextlib
import shutil

import jax
import polars as pl
import pytest

from behrt_jax.evaluation.loaded_run import load_run
from behrt_jax.evaluation.pretrained import evaluate_run
from behrt_jax.finetuning import finetuned
from behrt_jax.probing import few_label_task
from behrt_jax.training import digests, workdir
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.state import TrainState
from experiments.studies import few_labels
from tests.experiments.conftest import cut_data_set, evaluation_of
from tests.experiments.test_finetune import arguments

STEPS = {"survival__num_bins": 2, "train__num_steps": 4}


@contextlib.contextmanager
def replaced(file):
    """Puts a file back as it was."""
    before = file.read_bytes()
    try:
        yield pl.read_parquet(file)
    finally:
        file.write_bytes(before)


@pytest.fixture(scope="module")
def own(workplace, deaths, joint):
    """Labels, a pre-trained run and data that only the tests here change."""
    folder = workplace.folder / "inputs"
    folder.mkdir()
    labels = folder / "death.parquet"
    shutil.copy(deaths, labels)
    pretrained = shutil.copytree(joint, folder / "pretrained")
    return labels, pretrained


@pytest.fixture(scope="module")
def finetune(workplace, own):
    """Runs one and the same command of fine-tuning; the first time to its end."""
    labels, pretrained = own
    given = [*arguments(workplace, "survival", labels, "inputs/run", pretrained=pretrained, **STEPS), "--nobaselines"]
    done = workplace.run(given, "experiments.finetune")
    assert done.returncode == 0, done.stderr
    return lambda: workplace.run(given, "experiments.finetune")


def later(table: pl.DataFrame) -> pl.DataFrame:
    """The same labels, a week later."""
    return table.with_columns(pl.col("event_time").dt.offset_by("7d"))


@pytest.mark.slow
def test_other_labels_under_the_same_name_are_refused_and_the_same_in_another_order_are_not(own, finetune, workplace):
    labels, _ = own
    folder = workplace.folder / "inputs" / "run"
    with replaced(labels) as table:
        later(table).write_parquet(labels)
        done = finetune()
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"began with other contents of labels ({labels}) than there are now" in done.stderr
        with pytest.raises(ValueError, match=r"began with other contents of labels \("):
            finetuned.load(folder, None)
        shutil.move(folder / "evaluation.json", folder / "kept.json")  # as if it were interrupted
        done = finetune()
        assert done.returncode == 2 and "other contents of labels" in done.stderr
        shutil.move(folder / "kept.json", folder / "evaluation.json")
        table.sample(fraction=1.0, shuffle=True, seed=1).write_parquet(labels, compression="gzip")
        done = finetune()
        assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr


@pytest.mark.slow
def test_another_pre_trained_run_under_the_same_name_is_refused(own, finetune):
    _, pretrained = own
    kept = shutil.move(pretrained, pretrained.with_name("kept"))
    shutil.copytree(kept, pretrained)
    try:
        checkpoints = Checkpoints(pretrained / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
        step = checkpoints.steps()[-1]
        params = jax.tree.map(lambda leaf: leaf * 1.5, workdir.load(pretrained).params)
        checkpoints.save(TrainState(jax.numpy.int32(step + 1), params, None), {workdir.TUNING_LOSS: -1.0})
        checkpoints.close()
        done = finetune()
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert f"began with other contents of pretrained ({pretrained}) than there are now" in done.stderr
    finally:
        shutil.rmtree(pretrained)
        shutil.move(kept, pretrained)
    done = finetune()
    assert done.returncode == 0 and "nothing to do" in done.stdout


@pytest.mark.slow
def test_other_patients_under_the_same_labels_are_refused(own, finetune, workplace):
    (file,) = (workplace.data / "data").glob("*.parquet")
    with replaced(file) as events:
        events.filter(pl.col("code") != "ENCOUNTER//wellness").write_parquet(file)
        done = finetune()
        assert done.returncode == 2 and "began with other contents of data.path" in done.stderr


@pytest.mark.slow
def test_an_older_run_goes_on_with_a_note(finetune, workplace):
    folder = workplace.folder / "inputs" / "run"
    shutil.move(folder / workdir.DIGESTS_FILE, folder / "kept.json")
    done = finetune()
    shutil.move(folder / "kept.json", folder / workdir.DIGESTS_FILE)
    assert done.returncode == 0 and "nothing to do" in done.stdout
    assert f"{folder}: has no digest of labels, data.path, pretrained" in done.stdout


def test_few_labels_of_other_labels_are_not_mixed_in(own, workplace):
    labels, pretrained = own
    config = few_labels.recipe()
    config.pretrained = str(pretrained)
    places = {"data.path": str(workplace.data), "data.prepared_dir": str(workplace.folder / "prepared")}
    config.update_from_flattened_dict({**places, "survival.num_bins": 2})
    given = (config.to_dict(), str(labels), 1, workplace.folder / "inputs" / "few")
    few_label_task.read_task(*given)
    few_label_task.read_task(*given)
    with replaced(labels) as table:
        later(table).write_parquet(labels)
        with pytest.raises(ValueError, match=r"began with other contents of labels \("):
            few_label_task.read_task(*given)


@pytest.mark.slow
def test_an_evaluation_of_other_patients_or_another_checkpoint_is_made_again(joint, workplace, tmp_path):
    folder = shutil.copytree(joint, tmp_path / "run")
    run = load_run(folder, "held_out", None)
    expected = digests.of_evaluation(folder, run.digests, run.patients)
    file = folder / "evaluation.json"
    assert digests.is_current(file, expected) and evaluation_of(folder)["train_patients"] == len(run.train)
    evaluate_run(folder, "tuning", with_baselines=False)
    assert not digests.is_current(file, expected)
    other = cut_data_set(tmp_path / "other", skip=50)
    evaluate_run(folder, "held_out", str(other), with_baselines=False)
    assert evaluation_of(folder)["data"] == "other" and not digests.is_current(file, expected)
    evaluate_run(folder, "held_out", with_baselines=False)
    assert digests.is_current(file, expected)
    shutil.rmtree(folder / workdir.CHECKPOINTS / str(max(Checkpoints(folder / "checkpoints", "loss").steps())))
    assert digests.of_evaluation(folder, run.digests, run.patients) != expected
