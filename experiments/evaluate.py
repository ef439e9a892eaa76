"""Held-out metrics of a pre-trained model beside its baselines, printed and written to `evaluation.json`.

python -m experiments.evaluate --workdir=DIR [--data=DIR] [--split=held_out]
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

from absl import flags

from behrt_jax import baselines, evaluate, metrics, workdir
from behrt_jax.data import batches, dataset, events
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from experiments import command
from experiments.summary import format_table

BASELINE_BATCHES = 200
EVALUATION_FILE = "evaluation.json"


def evaluate_run(folder: Path, split: str, data: str | None = None, say: Callable[[str], None] = print) -> dict:
    """Scores the best checkpoint of a workdir and the baselines on the same hidden codes, and writes the result.

    Args:
      folder: the workdir.
      split: `train`, `tuning` or `held_out`.
      data: another MEDS data set to score on, with the model's vocabulary; the run's own if None.
      say: takes lines on what is going on.

    Returns:
      `{"split", "patients", "metrics": {NAME: {"value", "low", "high", "n"}}, "baselines": {NAME: {...}}}`.
    """
    config, vocabulary, model, params = workdir.load(folder)
    own = prepare(DataConfig(**config.data), progress=say)
    if own.vocabulary.fingerprint != vocabulary.fingerprint:
        raise ValueError(
            f"{config.data.path}: gives another vocabulary than {folder} was trained with; baselines are fitted on the "
            "train split of the run: restore that data"
        )
    scored = own
    if data is not None:
        scored = prepare(DataConfig(**{**config.data, "path": data}), fitted=vocabulary, splits=(split,), progress=say)
    settings, size = config.evaluation, len(vocabulary)
    length, separators = config.data.row_length, config.data.separators
    train, tuning = (dataset.read(own.folder, name) for name in ("train", "tuning"))
    everyone = dataset.read(scored.folder, split)
    patients, tuning = (dataset.sample(found, settings.max_patients) for found in (everyone, tuning))
    if len(patients) < len(everyone):
        say(f"scoring {len(patients):,} of {len(everyone):,} patients of {split} (evaluation.max_patients)")

    def masked(found, draws):
        plain = batches.evaluation_batches(found, length, settings.batch_size, separators)
        return evaluate.mask_batches(plain, settings.mask_rate, size, draws)

    def training():
        return batches.training_batches(train, length, settings.batch_size, config.seed, separators=separators)

    outcomes = evaluate.score(evaluate.make_score_step(model), params, masked(patients, settings.mask_draws))
    result = {
        "split": split,
        "patients": len(set(outcomes.patients.tolist())),
        "metrics": metrics.summarize(outcomes, "mlm"),
        "baselines": {},
    }
    predictors = baselines.fit_baselines(
        lambda: itertools.islice(training(), BASELINE_BATCHES),
        lambda: evaluate.mask_batches(training(), settings.mask_rate, size, draws=1),
        list(masked(tuning, 1)),
        size,
        progress=lambda name: say(f"fitting baselines: {name}"),
    )
    for name, predictor in predictors.items():
        found = baselines.predict(predictor, masked(patients, settings.mask_draws))
        result["baselines"][name] = metrics.summarize(found, "mlm")
    scratch = folder / f"{EVALUATION_FILE}.tmp"
    scratch.write_text(json.dumps(result, indent=1))
    scratch.replace(folder / EVALUATION_FILE)
    return result


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    print(format_table(evaluate_run(folder, FLAGS.split, FLAGS.data)))
    print(f"written: {folder / EVALUATION_FILE}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_string("data", None, "Another MEDS data set to score on; default: the run's own.")
    flags.DEFINE_enum("split", "held_out", events.SPLITS, "Which patients to score.")
    command.run(main)
