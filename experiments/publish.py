"""Publishes the encoder of a pre-trained run: its best parameters and what `behrt_jax.load` needs, with a model card.

python -m experiments.publish --workdir=runs/small --output=pretrained/synthea-small --patients=simulated
    --license=Apache-2.0 [--about=TEXT] [--hardware=TEXT] [--min_patients=11] [--overwrite]

What stays behind: the optimizer's state, logs (whose file names hold the host's), absolute paths, comparisons with
other runs. What goes out is printed at the end. docs/pretrained.md says what to think of.
"""

import json
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
from absl import flags

from behrt_jax import workdir
from behrt_jax.checkpoint import Checkpoints
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.models.behrt import count_parameters
from behrt_jax.state import TrainState
from experiments import command, model_card, publishable
from experiments.fitting import EVALUATION_FILE
from experiments.small_cells import MIN_PATIENTS

CARD = "README.md"
COMMIT = "commit_success.txt"  # Orbax writes the path of the machine into it
FLOORS = {"simulated": 1, "public": 1, "real": MIN_PATIENTS}  # of whatever goes out


def load_best(folder: Path) -> tuple[workdir.Loaded, int, dict[str, float]]:
    """Loads a pre-trained run with the step of its best checkpoint and its metrics on tuning.

    Raises:
      ValueError: the run is fine-tuned or cannot be loaded, or its best checkpoint is damaged or not evaluated.
    """
    found = workdir.load(folder)
    if "objective" not in found.config:
        raise ValueError(f"--workdir={folder}: was fine-tuned; expected a run of experiments.pretrain")

    def refuse(line: str) -> None:
        raise ValueError(f"{line}; expected the best one to be whole")

    params = workdir.restore_params(folder, found.config, found.model, refuse)
    checkpoints = Checkpoints(folder / workdir.CHECKPOINTS, workdir.TUNING_LOSS)
    best = checkpoints.best()
    checkpoints.close()
    if best is None:
        raise ValueError(f"{folder / workdir.CHECKPOINTS}: no checkpoint was evaluated on tuning; train for longer")
    return found._replace(params=params), *best


def write_parameters(folder: Path, params, step: int, metrics: dict[str, float]) -> None:
    """Writes parameters as a checkpoint that does not name the machine."""
    checkpoints = Checkpoints(folder, workdir.TUNING_LOSS)
    checkpoints.save(TrainState(jnp.int32(step), params, None), metrics)
    checkpoints.close()
    for file in folder.rglob(COMMIT):
        file.write_text("")
    checkpoints.record_sizes(step)


def publish(folder: Path, output: Path, origin: model_card.Origin, floor: int, hardware: str = "") -> list[str]:
    """Writes what is published, in one move; returns lines on what goes out and what does not."""
    found, step, metrics = load_best(folder)
    publishable.check_floor(found.vocabulary, floor)
    if origin.patients == "real":
        publishable.check_value_edges(found.vocabulary, floor)
    result, dropped = publishable.read_evaluation(folder / EVALUATION_FILE, floor)
    report = prepare(DataConfig(**found.config.data), progress=print).report
    publishable.check_splits(report, floor)
    config, changed = publishable.without_places(found.config)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / output.name
        workdir.open_workdir(made, config, found.vocabulary)
        write_parameters(made / workdir.CHECKPOINTS, found.params, step, metrics)
        (made / EVALUATION_FILE).write_text(json.dumps(result, indent=1))
        cost = model_card.describe_cost(folder, config, hardware)
        size = count_parameters(found.params)
        run = model_card.Run(config, found.vocabulary, size, step, metrics, result, report, cost)
        (made / CARD).write_text(model_card.write(output, run, origin))
        publishable.check_anonymous(made)
        if output.exists():
            shutil.rmtree(output)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(made, output)
    vocabulary = found.vocabulary
    return [
        *changed,
        f"left out: {dropped:,} metrics of fewer than {floor} patients (--min_patients), or that would tell of them",
        f"goes out: {len(vocabulary.codes):,} codes by name, each with how often it occurs and in how many train "
        f"patients ({min(vocabulary.patients):,} or more); and bins of {len(vocabulary.value_edges):,} codes' values",
    ]


def main() -> None:
    """Runs the command."""
    output = Path(FLAGS.output)
    if output.exists() and not (FLAGS.overwrite and (output / CARD).exists() and (output / "config.json").exists()):
        raise ValueError(f"--output={output}: exists; name another, or give --overwrite where it was published before")
    floor = FLAGS.min_patients or FLOORS[FLAGS.patients]
    origin = model_card.Origin(FLAGS.patients, FLAGS.license, FLAGS.about)
    print("\n".join(publish(Path(FLAGS.workdir), output, origin, floor, FLAGS.hardware)))
    size = sum(file.stat().st_size for file in output.rglob("*"))
    print(f"written: {output}, {size / 1e6:.1f} MB; read {output / CARD} and complete it before you hand it on")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote, evaluated.", required=True)
    flags.DEFINE_string("output", None, "The folder to write.", required=True)
    flags.DEFINE_enum("patients", None, [*FLOORS], "Who the patients are that it was trained on.", required=True)
    flags.DEFINE_string("license", None, "The licence under which the data lets you publish it.", required=True)
    flags.DEFINE_string("about", "", "A sentence for the card on where the data comes from.")
    flags.DEFINE_string(
        "hardware",
        "",
        "What it was trained on, for the card; default: as the run says.",
    )
    what = f"Fewest patients of a code, of a metric and of a split; 0: {MIN_PATIENTS} for real ones, else 1."
    flags.DEFINE_integer("min_patients", 0, what)
    flags.DEFINE_bool("overwrite", False, "Replace what was published to --output before.")
    command.run(main)
