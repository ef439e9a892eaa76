"""Measures what the embeddings of a run encode about diseases, compared with bags of codes: docs/embeddings.md.

python -m experiments.explore --workdir=DIR [--data=DIR] [--diseases=FILE] [--at=last|DATE] [--clusters=K]
  [--windows=all|newest] [--output=FILE]

Everything is fitted on train, chosen on tuning and measured on held-out patients; results are written to
`DIR/embedding_quality.json`.
"""

import dataclasses
import json
from pathlib import Path

from absl import flags

from behrt_jax.embeddings import snapshots
from behrt_jax.exploration import choices, subtypes, tables
from behrt_jax.exploration import representations as made
from behrt_jax.exploration.population import find_families, read_population
from behrt_jax.training import workdir
from behrt_jax.training.workdir import EMBEDDING_QUALITY_FILE
from experiments import _cli


def main() -> None:
    """Runs the command."""
    folder, at = Path(FLAGS.workdir), snapshots.read_date(FLAGS.at)
    loaded = workdir.load(folder)
    data = dataclasses.replace(loaded.recipe.data, path=FLAGS.data or loaded.recipe.data.path)
    loaded = loaded._replace(recipe=dataclasses.replace(loaded.recipe, data=data))
    population = read_population(loaded, FLAGS.diseases, at, FLAGS.windows == "all")
    families = find_families(loaded, population)
    result = {
        "workdir": str(folder),
        "data": data.path,
        "at": FLAGS.at,
        "windows": FLAGS.windows,
        "dimensions": loaded.recipe.model.hidden_dim,
        "patients": {split: len(snapshot.histories) for split, snapshot in population.snapshots.items()},
        **choices.measure(families, population.groups),
    }
    result["subtypes"] = subtypes.describe(
        result["chosen"]["groups"][made.OWN], families[made.OWN], population, loaded, at, FLAGS.clusters
    )
    output = Path(FLAGS.output) if FLAGS.output else folder / EMBEDDING_QUALITY_FILE
    output.write_text(json.dumps(result, indent=1, allow_nan=False))
    print(tables.format_quality(result))
    print(f"written: {output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain or experiments.finetune wrote.", required=True)
    flags.DEFINE_string("data", None, "A MEDS data set; that of the run if not given.")
    flags.DEFINE_string("diseases", "configs/diseases.yaml", "Groups of diseases by codes.")
    flags.DEFINE_string("at", snapshots.LAST, "Only what came strictly before this date is read; or last: all of it.")
    flags.DEFINE_enum("windows", "all", ["newest", "all"], "The newest tokens that a row holds, or the whole history.")
    flags.DEFINE_integer("clusters", 0, "Of k-means; 0: as many as do best on tuning.", lower_bound=0)
    flags.DEFINE_string("output", None, f"The JSON file to write; WORKDIR/{EMBEDDING_QUALITY_FILE} if not given.")
    _cli.run(main)
