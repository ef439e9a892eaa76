"""Measures the speed of this library beside PyTorch peers and other checkouts, in interleaved rounds of one call.

python -m experiments.benchmark [--what=step|memory|inference|embed|host|prepare|startup|main_job] [--tier=small]
  [--vocabulary=1000] [--row_length=256] [--peers=reference,strong,hf] [--peer_python=PATH] [--against=CHECKOUT]
  [--rounds=5] [--steps=5] [--least_ratio=1.2] [--output=DIR]

Peers need the packages of requirements-benchmark.txt, here or in the environment of --peer_python. docs/performance.md
explains the table.
"""

from pathlib import Path

from absl import flags

from behrt_jax.benchmarks import contestants
from behrt_jax.benchmarks.benchmark import WHAT, benchmark
from behrt_jax.benchmarks.workload import TIERS, Workload
from experiments import _cli

PEERS = Path(__file__).parent / "studies" / "peers"


def main() -> None:
    """Runs the command."""
    work = Workload(
        FLAGS.what,
        FLAGS.tier,
        FLAGS.vocabulary,
        FLAGS.row_length,
        FLAGS.rows,
        FLAGS.dropout,
        FLAGS.threads,
        updates=FLAGS.updates,
        peer_learning_rate=FLAGS.peer_learning_rate,
    )
    chosen = contestants.choose(PEERS, FLAGS.peers, FLAGS.against, FLAGS.peer_python, FLAGS.what)
    options = {"num_rounds": FLAGS.rounds, "steps": FLAGS.steps, "least_ratio": FLAGS.least_ratio}
    benchmark(work, chosen, Path(FLAGS.output), prepared_dir=FLAGS.prepared_dir, data=FLAGS.data, **options)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_enum("what", "step", WHAT, "What to measure; see docs/performance.md.")
    flags.DEFINE_enum("tier", "small", TIERS, "The recipe.")
    flags.DEFINE_integer("vocabulary", 1000, "Rows of the code table.")
    flags.DEFINE_integer("row_length", 256, "Tokens per packed row.")
    flags.DEFINE_integer("rows", 0, "Rows per step; 0: the recipe's.")
    flags.DEFINE_float("dropout", 0.1, "Dropout rate of all contestants.")
    flags.DEFINE_integer("threads", 0, "CPUs of each contestant; 0: all.")
    flags.DEFINE_integer("rounds", 5, "Rounds; each contestant runs once per round.")
    flags.DEFINE_integer("steps", 5, "Steps per contestant and round.")
    flags.DEFINE_integer("updates", 0, "Updates of main_job; 0: the recipe's.", lower_bound=0)
    flags.DEFINE_float("peer_learning_rate", 0.0, "Peak of peers in main_job; 0: the recipe's.", lower_bound=0.0)
    flags.DEFINE_float("least_ratio", 0.0, "An error below this ratio to any other contestant, by the median.")
    flags.DEFINE_list("peers", [], "PyTorch peers: reference, strong, hf.")
    flags.DEFINE_string("peer_python", "", "The Python that runs peers; default: this one.")
    flags.DEFINE_string("against", "", "Another checkout of this library.")
    flags.DEFINE_string("data", "", "A MEDS data set; default: the recipe's.")
    flags.DEFINE_string("prepared_dir", "prepared", "The cache of prepared data.")
    flags.DEFINE_string("output", "runs/benchmark", "Where benchmark.json and benchmark.md are written.")
    _cli.run(main)
