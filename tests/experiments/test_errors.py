"""What a user gets to see for bad input: one line that begins with `error: `, exit status 2 and no traceback."""

import functools
import re
import sys

import pytest

import behrt_jax
from behrt_jax.recipes import small
from tests import tiny

# Name: (overrides of a tiny run by the workdir "whole", further flags; None in their place: no other flags at all;
# what the message must hold).
CASES = {
    "unknown key": (
        ["--config.train.num_step=3"],
        r"config\.train\.num_step: no such config key; did you mean .*num_steps",
    ),
    "unknown section": (["--config.trian.num_steps=3"], r"config\.trian.*: no such config key"),
    "wrong type": (["--config.train.num_steps=many"], r"num_steps.*many"),
    "hidden_dim": (["--config.model.hidden_dim=15"], r"model\.hidden_dim: 15 is not divisible by model\.num_heads=2"),
    "no targets": (
        ["--config.objective.name=next_visit", "--config.objective.targets=('NOTHING//*', 'NONE//*')"],
        r"objective\.targets: none of the \d+ codes .*such as \w+//.*matches \('NOTHING//\*', 'NONE//\*'\) in 5 train",
    ),
    "data path": (["--config.data.path=no/such/place"], r"no/such/place: no such directory; data\.path must name"),
    "no recipe": (["--config=configs/smal.py"], r"configs/smal\.py: expected a recipe that exists"),
    "unknown flag": (["--worksdir=x"], r"worksdir"),
    "another config": (
        ["--config.train.num_steps=41"],
        r"whole: belongs to another config \(train\.num_steps: 40 there, 41",
    ),
    "below a file": (["--workdir={folder}/file/run"], r"file/run: cannot be written .*; use another --workdir"),
    "no permission": (["--workdir=/sys/behrt_jax"], r"/sys/behrt_jax: cannot be written"),
    "nothing to evaluate": (None, r"nowhere/config\.json: not the config of a workdir"),
    "with traceback": (["--config.model.hidden_dim=15", "--debug"], r"model\.hidden_dim: 15 is not divisible"),
    "diverges at once": (
        ["--workdir={folder}/diverged", "--config.optimizer.learning_rate=1e30"],
        r"is (nan|inf) at step 1; no checkpoint was saved before; lower optimizer\.learning_rate",
    ),
    "diverges later": (
        [
            "--workdir={folder}/diverging",
            "--config.optimizer.learning_rate=1e6",
            "--config.optimizer.warmup_share=0.9",
            "--config.train.evaluate_every=1",
        ],
        r"is (nan|inf) at step (\d+); the last good checkpoint is .*/diverging/checkpoints/(\d+); lower optimizer",
    ),
    "no space for the data": (
        ["--workdir={folder}/unprepared", "--config.data.prepared_dir={folder}/full", "--config.data.value_bins=3"],
        r"/full.*(space|too large)",
    ),
    "no space for the workdir": (
        ["--workdir={folder}/full_workdir"],
        r"full_workdir: cannot be written .*File too large.*; use another",
    ),
    "no space for a checkpoint": (
        ["--workdir={folder}/full_checkpoint"],
        r"full_checkpoint/checkpoints: checkpoint 10 could not be written; free some space \(.*File too large",
    ),
}
QUICK = ("unknown key", "hidden_dim", "no targets", "no recipe", "another config", "below a file")
QUICK += ("diverges later", "no space for a checkpoint")
# Settings of a recipe and what the message must hold; seen without a command.
SETTINGS = {
    "mask rate": ({"objective.mask_rate": 0.0}, r"objective\.mask_rate: found 0\.0; expected more than 0"),
    "warm-up": ({"optimizer.warmup_share": 1.0}, r"optimizer\.warmup_share: found 1\.0"),
    "accumulation": (
        {"train.accumulate_steps": 3, "train.batch_size": 2},
        r"train\.accumulate_steps: found 3 with train\.batch_size=2",
    ),
    "max patients": ({"train.max_patients": -1}, r"train\.max_patients: found -1; expected 0 or more"),
    "objective": (
        {"objective.name": "masked"},
        r"objective\.name: found 'masked'; expected one of mlm, next_visit, time_to_event, joint",
    ),
    "no weight": (
        {"objective.name": "joint", "objective.mlm_weight": 0.0, "objective.next_visit_weight": 0.0},
        r"objective\.name: found joint with all weights 0; expected one of them above 0",
    ),
    "edges": (
        {"objective.event_edges": (30.0, 10.0)},
        r"objective\.event_edges: found \(30\.0, 10\.0\); expected days above 0 in ascending order",
    ),
    "no days": ({"objective.event_edges": ("soon",)}, r"objective\.event_edges"),
}
LIMITS = {"no space for the data": 4096, "no space for the workdir": 1024}
SHOWS_TRACEBACK = "with traceback"
NOISY = "no space for a checkpoint"  # callbacks of Orbax's store may still print when their event loop is gone


@pytest.fixture(scope="session")
def outcome(workplace, whole):
    """A function from the name of a case to its exit status, output and errors."""
    folder = workplace.folder
    (folder / "file").write_text("")
    vocabulary = (whole[0] / "vocabulary.json").stat().st_size

    @functools.cache
    def run(name: str) -> tuple[int, str, str]:
        flags = CASES[name][0]
        if flags is None:
            module, arguments = "experiments.evaluate", ["--workdir=nowhere"]
        else:
            module, given = "experiments.pretrain", [flag.format(folder=folder) for flag in flags]
            keys = {flag.partition("=")[0] for flag in given}
            arguments = [flag for flag in workplace.arguments("whole") if flag.partition("=")[0] not in keys] + given
            arguments.sort(key=lambda flag: flag.startswith("--config."))  # which must come after --config itself
        limit = LIMITS.get(name, vocabulary + 4096 if name == "no space for a checkpoint" else 0)
        command = workplace.start(arguments, module, largest_file=limit)
        return (command.wait(), *command.communicate())

    return run


@pytest.mark.parametrize("name", tiny.slow_but(QUICK, CASES))
def test_bad_input_ends_with_one_line(name, outcome):
    if name == "no permission" and sys.platform != "linux":
        pytest.skip("/sys is of Linux")
    status, out, err = outcome(name)
    assert status == 2, out + err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.splitlines()[-1] == lines[0]
    assert re.search(CASES[name][1], lines[0]), lines[0]
    if name != NOISY:
        assert ("Traceback (most recent call last)" in out + err) is (name == SHOWS_TRACEBACK), err


def test_what_is_wrong_with_the_config_is_said_before_anything_is_read(outcome):
    for name in ("unknown key", "no recipe", "hidden_dim"):
        assert outcome(name)[1] == ""


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_out_of_range_are_refused_before_anything_is_read(name, tmp_path, messages):
    settings, message = SETTINGS[name]
    config = small.get_config()
    for key, value in settings.items():
        section, _, own = key.partition(".")
        config[section][own] = value
    config.data.path = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=message):
        behrt_jax.pretrain(config, tmp_path / "run")
    assert not messages and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_nothing_half_written_is_left(workplace, outcome):
    for name in ("no space for the data", "no space for the workdir", "below a file"):
        outcome(name)
    assert not (workplace.folder / "unprepared").exists()
    assert not list((workplace.folder / "full").iterdir())
    assert not (workplace.folder / "full_workdir" / "config.json").exists()
    assert (workplace.folder / "file").read_text() == ""


def test_a_checkpoint_without_space_leaves_none(workplace, outcome):
    outcome("no space for a checkpoint")
    steps = [path.name for path in (workplace.folder / "full_checkpoint" / "checkpoints").iterdir()]
    assert not [name for name in steps if name.isdigit()]


def test_the_good_checkpoint_that_is_named_is_there_and_none_after_it(workplace, outcome):
    found = re.search(CASES["diverges later"][1], outcome("diverges later")[2])
    assert found
    diverged, good = int(found[2]), int(found[3])
    saved = sorted(int(path.name) for path in (workplace.folder / "diverging" / "checkpoints").glob("[0-9]*"))
    assert saved[-1] == good < diverged


@pytest.mark.slow
def test_a_run_that_diverges_at_once_has_no_checkpoint(workplace, outcome):
    outcome("diverges at once")
    assert not list((workplace.folder / "diverged" / "checkpoints").glob("[0-9]*"))
