"""Commands as a user runs them, on sixty of the bundled patients and a tiny model."""

import hashlib
import json
import os
import signal
import subprocess
from pathlib import Path

import jax
import orbax.checkpoint as ocp
import polars as pl
import pytest
from matplotlib import image

from behrt_jax.training import workdir
from behrt_jax.training.checkpoints import Checkpoints
from experiments import KEEP_MEMORY
from tests.experiments.commands import Command, Server
from tests.experiments.pages import find_chromium

ROOT = Path(__file__).parents[2]
JOINT = {
    "objective__name": "joint",
    "objective__time_to_event_weight": 1.0,
    "objective__min_patients": 3,
    "objective__queries_per_row": 4,
    "data__events_without_visit": "leave_out",
    "train__num_steps": 30,
}
BUNDLED = ROOT / "data" / "synthea-1151"
PATIENTS = {"train": 40, "tuning": 10, "held_out": 10}
NUM_STEPS = 40
EVALUATE_EVERY = 10
TINY = {
    "data.row_length": 64,
    "data.min_patients": 3,
    "model.embedding_dim": 8,
    "model.hidden_dim": 16,
    "model.num_layers": 1,
    "model.num_heads": 2,
    "model.feedforward_dim": 16,
    "model.max_positions": 64,
    "model.dropout": 0.1,  # so that a resume must draw what an uninterrupted run draws
    "objective.mask_rate": 0.15,
    "optimizer.learning_rate": 1e-3,
    "optimizer.warmup_share": 0.1,
    "train.batch_size": 2,
    "train.num_steps": NUM_STEPS,
    "train.evaluate_every": EVALUATE_EVERY,
    "train.log_every": 1,
    "evaluation.batch_size": 4,
    "evaluation.num_mask_samples": 2,
}

FINE_TUNING = {
    "train.batch_size": 4,
    "train.num_steps": 12,
    "train.evaluate_every": 4,
    "train.log_every": 1,
    "evaluation.batch_size": 4,
}


def cut_data_set(folder: Path, skip: int) -> Path:
    """Writes a MEDS data set of sixty bundled patients, leaving out the first `skip` of each split."""
    splits = pl.read_parquet(BUNDLED / "metadata" / "subject_splits.parquet")
    chosen = pl.concat(
        splits.filter(pl.col("split") == split).sort("subject_id").slice(skip, number)
        for split, number in PATIENTS.items()
    )
    events = pl.read_parquet(sorted((BUNDLED / "data").rglob("*.parquet")))
    events = events.join(chosen, on="subject_id", how="semi").sort("subject_id", "time", nulls_last=False)
    for part in ("data", "metadata"):
        (folder / part).mkdir(parents=True)
    events.write_parquet(folder / "data" / "0.parquet")
    chosen.write_parquet(folder / "metadata" / "subject_splits.parquet")
    return folder


class Workplace:
    """A folder with data, prepared copies, runs and compiled functions, and the way to run commands there."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = cut_data_set(folder / "meds", skip=0)
        self.environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiling takes most of the time of a tiny run
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **KEEP_MEMORY,  # set already, so no command starts itself again
        }
        self._server, self._started = None, 0

    def arguments(self, run: str, **overrides) -> list[str]:
        """The flags of a tiny run; overrides name a key with two underscores for the dot."""
        keys = {**TINY, "data.path": self.data, "data.prepared_dir": self.folder / "prepared"}
        keys.update({key.replace("__", "."): value for key, value in overrides.items()})
        given = [f"--config.{key}={value}" for key, value in keys.items()]
        return [f"--config={ROOT / 'configs' / 'small.py'}", f"--workdir={self.folder / run}", *given]

    def start(self, arguments: list[str], module: str = "experiments.pretrain", **limits) -> Command:
        if self._server is None:
            self._server = Server(self.environment, ROOT)
        self._started += 1
        return self._server.start(self.folder / f"printed-{self._started}", module, arguments, **limits)

    def run(self, arguments: list[str], module: str = "experiments.pretrain", **limits) -> subprocess.CompletedProcess:
        command = self.start(arguments, module, **limits)
        return subprocess.CompletedProcess(command.args, command.wait(), *command.communicate())

    def train(self, arguments: list[str]) -> str:
        """Runs until training has ended and leaves out the evaluation behind it; returns what was printed."""
        command = self.start(arguments)
        command.wait_until(lambda: "\nfitting baselines" in command.printed())
        command.terminate()
        printed, errors = command.communicate()
        assert command.returncode == 128 + signal.SIGTERM, errors
        return printed

    def stop_at(self, run: str, arguments: list[str], step: int, number: int) -> subprocess.CompletedProcess:
        """Starts a run and sends it a signal as soon as its metrics show the step."""
        command, file = self.start(arguments), self.folder / run / "metrics.jsonl"

        def reached():
            lines = file.read_text().splitlines() if file.exists() else []
            return any(f'"step": {number},' in line for line in lines[-3:] for number in range(step, NUM_STEPS))

        command.wait_until(reached)
        command.send_signal(number)
        return subprocess.CompletedProcess(command.args, command.wait(), *command.communicate())

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


def finetuning_arguments(place: Workplace, recipe: str, labels, run: str, **overrides) -> list[str]:
    """The flags of a tiny fine-tuned run; see `Workplace.arguments`."""
    keys = {**FINE_TUNING, "labels": labels, "data.path": place.data, "data.prepared_dir": place.folder / "prepared"}
    keys.update({key.replace("__", "."): value for key, value in overrides.items()})
    given = [f"--config.{key}={value}" for key, value in keys.items()]
    return [f"--config={ROOT / 'configs' / recipe}.py", f"--workdir={place.folder / run}", *given]


def newest_state(folder: Path) -> dict[str, str]:
    """A digest of each array of the newest checkpoint, by its name."""
    checkpoints = Checkpoints(folder / "checkpoints", workdir.TUNING_LOSS)
    step = checkpoints.steps()[-1]
    checkpoints.close()
    digests = {"step": str(step)}
    for part in ("params", "rest"):
        with ocp.StandardCheckpointer() as reader:
            path = folder.resolve() / "checkpoints" / str(step) / part
            stored = reader.metadata(path)
            tree = getattr(stored, "item_metadata", stored)
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device()), tree)
            found = reader.restore(path, like)
        leaves = jax.tree_util.tree_leaves_with_path(found)
        for key, leaf in jax.device_get(leaves):
            digests[part + jax.tree_util.keystr(key)] = hashlib.sha256(leaf.tobytes()).hexdigest()
    return digests


def assert_same_end(folder: Path, whole: Path) -> None:
    """Parameters, optimizer and step are bit-identical, and so are all metrics but the speed."""
    assert newest_state(folder) == newest_state(whole)
    for split in ("train", "tuning"):
        resumed, expected = metrics_of(folder, split), metrics_of(whole, split)
        steps = [line["step"] for line in resumed]
        assert steps == sorted(set(steps))
        for line in expected + resumed:
            for clock in ("tokens_per_second", "seconds"):
                line.pop(clock, None)
        assert resumed == expected


def evaluation_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def has_curve(file: Path) -> bool:
    """Whether a picture holds a line in colour, beside paper, axes and letters, which are grey."""
    colours = image.imread(file)[..., :3]
    return int((colours.max(axis=-1) - colours.min(axis=-1) > 0.3).sum()) > 100


def device():
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def metrics_of(folder: Path, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    yield place
    place.close()


@pytest.fixture(scope="session")
def whole(workplace) -> tuple[Path, subprocess.CompletedProcess]:
    """A run that was never stopped: its workdir and what it printed."""
    done = workplace.run(workplace.arguments("whole"), constants={"behrt_jax.baselines.masked_codes.NETWORK_STEPS": 50})
    assert done.returncode == 0, done.stderr
    return workplace.folder / "whole", done


@pytest.fixture(scope="session")
def deaths(workplace):
    """Labels of time to death from fixed dates, made by the command."""
    file = workplace.folder / "death.parquet"
    task = [f"--task={ROOT / 'configs' / 'tasks' / 'death.yaml'}", f"--data={workplace.data}", f"--output={file}"]
    done = workplace.run(task, "experiments.labels")
    assert done.returncode == 0, done.stderr
    return file


@pytest.fixture(scope="session")
def joint(workplace) -> Path:
    """The workdir of a run on masked codes, next visits and events together, evaluated without baselines."""
    done = workplace.run([*workplace.arguments("joint", **JOINT), "--nobaselines"])
    assert done.returncode == 0, done.stderr
    assert "fitting baselines" not in done.stdout
    return workplace.folder / "joint"


@pytest.fixture(scope="session")
def cut(workplace) -> Path:
    """The workdir of a run on next visits from histories cut at random, in which codes see each other both ways."""
    steps = {"train__num_steps": 4, "train__evaluate_every": 4, "objective__history": "random_cut"}
    chosen = {**JOINT, **steps, "objective__name": "next_visit"}
    done = workplace.run([*workplace.arguments("cut", **chosen), "--nobaselines"])
    assert done.returncode == 0, done.stderr
    return workplace.folder / "cut"


@pytest.fixture(scope="session")
def survival_run(workplace, deaths, joint):
    """A run that is fine-tuned from a pre-trained one beside a regression: its workdir and what it printed."""
    chosen = {"pretrained": joint, "survival__num_bins": 3, "head__features": ("regression",)}
    given = [*finetuning_arguments(workplace, "survival", deaths, "survival", **chosen), "--nobaselines"]
    drawn = {"behrt_jax.evaluation.small_cells.MIN_PATIENTS": 1}  # of real patients, so few are not drawn
    done = workplace.run(given, "experiments.finetune", constants=drawn)
    assert done.returncode == 0, done.stderr
    return workplace.folder / "survival", done


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium, without anything of its own that calls out."""
    path = find_chromium()
    api = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=flags)
        yield opened
        opened.close()
