"""Shows what code embeddings have learned: nearest neighbours, and how often they share a group.

python -m experiments.codes --workdir=DIR [--data=DIR] [--query=TEXT] [--neighbours=10] [--diseases=FILE]

With a query (a code, or words of its description), prints the nearest codes. Without one, prints how often neighbours
share a group, compared with baselines, and writes that and all neighbours to DIR/code_embeddings.json; see
docs/code_embeddings.md.
"""

from pathlib import Path

from absl import flags

from behrt_jax.data import metadata
from behrt_jax.exploration.codes import show_neighbours, write_report
from behrt_jax.training import workdir
from experiments import _cli


def main() -> None:
    """Runs the command."""
    folder, k = Path(FLAGS.workdir), FLAGS.neighbours
    loaded = workdir.load(folder)
    data = FLAGS.data or loaded.recipe.data.path
    descriptions = metadata.read_descriptions(data, loaded.vocabulary)
    if FLAGS.query is not None:
        print(show_neighbours(loaded, descriptions, FLAGS.query, k))
        return
    write_report(folder, loaded, data, descriptions, k, FLAGS.diseases)
    print(f"next: python -m experiments.codes --workdir={folder} --query=diabetes")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "A run of experiments.pretrain or experiments.finetune.", required=True)
    flags.DEFINE_string("data", None, "Where its data set lies now; default: where it was.")
    flags.DEFINE_string("query", None, "A code, or words of its name or description.")
    flags.DEFINE_integer("neighbours", 10, "How many neighbours of each code.", lower_bound=1)
    flags.DEFINE_string("diseases", "configs/diseases.yaml", "Groups of diseases.")
    _cli.run(main)
