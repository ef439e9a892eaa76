"""Measures whether neighbouring patients share diseases, at several dates and over several runs: docs/embeddings.md.

python -m experiments.neighbours --workdir=RUN[,RUN...] --at=DATE,DATE,... [--diseases=FILE] [--windows=all|newest]
  [--output=FILE]

Several runs, such as the folds of a cross-validation, are each measured on held-out patients of their own data.
"""

import collections
import json
from pathlib import Path

import numpy as np
from absl import flags

from behrt_jax.exploration import tables
from behrt_jax.exploration.measures import NEIGHBOURS
from behrt_jax.exploration.neighbours import measure_run, read_date
from behrt_jax.exploration.representations import BOTH, OWN
from behrt_jax.metrics import bootstrap
from behrt_jax.training import workdir
from experiments import _cli


def main() -> None:
    """Runs the command."""
    parts, chosen = collections.defaultdict(list), {}
    for run in FLAGS.workdir:
        print(f"{run}:")
        loaded = workdir.load(Path(run))
        dates = [read_date(loaded, FLAGS.diseases, date, FLAGS.windows == "all") for date in FLAGS.at]
        scores, chosen[run] = measure_run(dates)
        for family, each in scores.items():
            parts[family].append(each)
    joined = {family: bootstrap.concatenate(each) for family, each in parts.items()}
    result = {"workdir": FLAGS.workdir, "at": FLAGS.at, "windows": FLAGS.windows, "chosen": chosen}
    result |= {"patients": len(np.unique(joined[OWN].patients)), "neighbours": NEIGHBOURS}
    for name in (OWN, BOTH):
        others = {family: each for family, each in joined.items() if family not in (OWN, BOTH)}
        result[name] = bootstrap.report(joined[name], others, "retrieval")
    Path(FLAGS.output).write_text(json.dumps(result, indent=1, allow_nan=False))
    print(tables.format_neighbours(result))
    print(f"written: {FLAGS.output}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("workdir", None, "What experiments.pretrain wrote, of one run or several.", required=True)
    flags.DEFINE_list("at", None, "Dates, before which what came is read: YYYY-MM-DD,...", required=True)
    flags.DEFINE_string("diseases", "configs/diseases.yaml", "Groups of diseases by codes.")
    flags.DEFINE_enum("windows", "all", ["newest", "all"], "The newest tokens that a row holds, or the whole history.")
    flags.DEFINE_string("output", "neighbours.json", "The JSON file to write.")
    _cli.run(main)
