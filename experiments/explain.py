"""Explains predictions for held-out patients, and compares the explanations with the truth if it is known.

python -m experiments.explain --workdir=DIR [--data=DIR] [--num_patients=50] [--patients=3] [--show_patients]

For a pre-trained run, explains a code of the last visit or a masked code; for a fine-tuned run, its outcome. On
simulated data (`experiments.simulate`, `experiments.simulate_outcomes`) the table shows how well each method finds the
codes that truly matter. `DIR/attributions.json` has a few example patients; docs/interpretability.md has its structure.
"""

import functools
from pathlib import Path

from absl import flags

from behrt_jax.data import metadata
from behrt_jax.evaluation.loaded_run import load_run
from behrt_jax.finetuning import finetuned
from behrt_jax.interpret import examples as interpret_examples
from behrt_jax.interpret import methods
from behrt_jax.interpret.explain import ask_finetuned, ask_run, report
from behrt_jax.training import config_file
from behrt_jax.training.recipe import PRETRAINING
from experiments import _cli


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    recipe, _ = config_file.read(folder)
    source, number = FLAGS.data or recipe.data.path, FLAGS.patients
    if number:
        metadata.check_allowed(source, FLAGS.show_patients)
    if recipe.kind == PRETRAINING:
        run = load_run(folder, "held_out", FLAGS.data)
        model, params = run.task.model, run.params
        if not {"mlm", "next_visit"} & {*model.objectives}:
            raise ValueError(f"--workdir={folder}: was trained on events alone; expected masked codes or next visits")
        make = interpret_examples.next_visits if "next_visit" in model.objectives else interpret_examples.masked_codes
        ask, examples = functools.partial(ask_run, run), functools.partial(make, run)
    else:
        loaded = finetuned.load(folder, None)
        model, params = loaded.model, loaded.params
        ask = functools.partial(ask_finetuned, loaded)
        make = functools.partial(interpret_examples.outcomes, folder, loaded)
        examples = lambda number: make(ask_finetuned(loaded, number, False)[0], number, source)  # noqa: E731
    if FLAGS.num_patients:
        case, truth = ask(FLAGS.num_patients)
        print(report(case, truth, methods.explain(case, model, params), FLAGS.seed))
    if number:
        kind = "outcome" if recipe.kind != PRETRAINING else "next_visit" if "next_visit" in model.objectives else "mlm"
        print(f"written: {interpret_examples.write(folder, kind, source, examples(number))}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("data", None, "Another MEDS data set, such as a simulated one, for a pre-trained run.")
    flags.DEFINE_integer("num_patients", 50, "Held-out patients to compare methods on; 0 for none.", lower_bound=0)
    flags.DEFINE_alias("compared", "num_patients")
    flags.DEFINE_integer("patients", 3, "Example patients to write; 0 for none.", lower_bound=0)
    flags.DEFINE_bool("show_patients", False, "Write example patients of data that is not known to be synthetic.")
    flags.DEFINE_integer("seed", 0, "Of the random scores to compare with.", lower_bound=0)
    _cli.run(main)
