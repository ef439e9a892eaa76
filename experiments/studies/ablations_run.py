"""One run of `experiments.studies.ablations`: trains a variant and prints its tuning metrics as a line of JSON.

The next-visit metric is that of the model's next-visit head, at every visit, if it has one. For a model trained on
masked codes alone, it is that of a linear probe: one logistic regression per code, from the frozen embedding of a
patient's history up to a random visit, for the codes of the next visit.
"""

import itertools
import json
import time

import jax
from absl import flags
from sklearn.metrics import average_precision_score

from behrt_jax.baselines.next_visit import Split
from behrt_jax.data import batches, dataset, next_visit_targets
from behrt_jax.evaluation.next_visit import make_predictor
from behrt_jax.models.behrt import count_parameters
from behrt_jax.objectives import scoring
from behrt_jax.training import loop, pretraining, state
from behrt_jax.training.optimizer import make_optimizer
from experiments import _cli
from experiments.studies import linear_probe
from experiments.studies.variants import TRAINING, recipe


def pretrain(trained: pretraining.PretrainingTask, patients):
    """Trains a model from scratch; returns its parameters."""
    recipe = trained.recipe
    optimizer = make_optimizer(recipe.optimizer, recipe.train.num_steps)
    current = state.create_state(pretraining.initialize(trained, patients), optimizer, recipe.seed)
    train_step = loop.make_train_step(trained.objective, optimizer, recipe.seed)
    stream = pretraining.training_columns(trained, patients, 0)
    for columns in itertools.islice(stream, recipe.train.num_steps):
        current, metrics = train_step(current, columns)
    loop.check_finite([jax.device_get(metrics)], recipe.train.num_steps - 1)
    return current.params


def score_masked(recipe, model, params, tuning: dataset.Patients) -> dict[str, float]:
    """Scores a model on masked codes of the tuning split."""
    settings = recipe.evaluation
    plain = batches.evaluation_batches(tuning, recipe.data.row_length, settings.batch_size, recipe.data.use_sep)
    masked = scoring.mask_batches(plain, settings.mask_rate, recipe.model.vocab_size, draws=2)
    scores = scoring.score(scoring.make_score_step(model), params, masked).values
    return {name: float(scores[name].mean()) for name in ("loss", "accuracy", "top5_accuracy")}


def score_head(trained: pretraining.PretrainingTask, params, tuning: dataset.Patients) -> float:
    """Returns the micro average precision of a model's next-visit head on the tuning split."""
    index = pretraining.index(trained.recipe.data, tuning)
    examples = next_visit_targets.find_next_visits(tuning, index, trained.is_target)
    scores, _ = make_predictor(trained, params)(Split(tuning, index, examples))
    return float(average_precision_score(examples.targets.toarray().ravel(), scores.ravel()))


def main() -> None:
    """Runs the command."""
    config = recipe(FLAGS.variant, FLAGS.seed, FLAGS.num_steps)
    prepared, patients, task = pretraining.setup(config)
    tuning = dataset.read(prepared.folder, "tuning")
    model = task.model
    start = time.perf_counter()
    params = pretrain(task, patients)
    seconds = time.perf_counter() - start
    result = {"variant": FLAGS.variant, "seed": FLAGS.seed, "num_steps": FLAGS.num_steps, "seconds": seconds}
    result["parameters"] = count_parameters(params)
    if "mlm" in model.objectives:
        result |= score_masked(task.recipe, model, params, tuning)
    if "next_visit" in model.objectives:
        result["next_visit"] = score_head(task, params, tuning)
    elif FLAGS.variant not in TRAINING:
        train_set, tuning_set = (
            linear_probe.embed_histories(task.recipe, model, params, split) for split in (patients, tuning)
        )
        result["poolings"] = {
            name: linear_probe.probe(train_set[0][name], train_set[1], tuning_set[0][name], tuning_set[1])
            for name in train_set[0]
        }
        result["next_visit"] = result["poolings"]["mean"]
    print(json.dumps(result))


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("variant", None, "A name in experiments.studies.ablations.VARIANTS.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides parameters, masks and order.")
    flags.DEFINE_integer("num_steps", None, "Updates.", required=True)
    _cli.reexec_with_malloc_settings()
    _cli.run(main)
