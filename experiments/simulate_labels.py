"""Writes labels whose truth a simulator knows, one prediction time a patient, for comparisons with few labels.

python -m experiments.simulate_labels --data=DIR --output=FOLDER [--seed=0]

A label a disease, whether a visit finds it, from what came before; and times to death: docs/simulator.md.
"""

from pathlib import Path

import polars as pl
from absl import flags
from sklearn.metrics import roc_auc_score

from behrt_jax import survival_metrics
from behrt_jax.data import events, oracle, simulate
from behrt_jax.data import world as worlds
from behrt_jax.data.hashing import hash_integers
from behrt_jax.data.label_tables import KEYS
from experiments import command, labels


def choose_visits(truth: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Takes one visit of each patient who has several, not the first, each as likely; by patient.

    Args:
      truth: what `simulate.write` says of visits.
      seed: decides which.

    Returns:
      The rows, and as `oracle_death` what the oracle says after the visit before.
    """
    seen = truth.sort("subject_id", "visit").with_columns(
        oracle_death=pl.col("death_risk_seen").shift(1).over("subject_id")
    )
    later = seen.filter(pl.col("visit") > 0)
    drawn = hash_integers(seed, later["subject_id"].to_numpy(), later["visit"].to_numpy())
    return later.with_columns(drawn=drawn).sort("drawn").unique("subject_id", keep="first").sort("subject_id")


def follow(data: str) -> pl.DataFrame:
    """Returns when each patient was last seen and whether that was their death: `subject_id, event_time, event`."""
    seen = pl.concat([events.read_shard(shard).drop_nulls("time") for shard in events.find_shards(data)])
    last = [pl.col("time").max().alias("event_time"), (pl.col("code") == events.DEATH).any().alias("event")]
    return seen.group_by("subject_id").agg(last)


def make_labels(data: str, seed: int) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """Returns labels by name, and the visits that they are of, with what the oracle says of each.

    Labels are of the moment of a visit, which is so not among what is known. `oracle_NAME` is the probability that it
    finds a disease, from sex, the visits before and its month, or of death within a year of the last of these.

    Raises:
      ValueError: the folder is no simulated data set.
    """
    world = worlds.load_world(data)
    visits = choose_visits(pl.read_parquet(Path(data) / simulate.TRUTH_FILE), seed).rename({"time": "prediction_time"})
    histories = oracle.read_histories(data, visits["subject_id"])
    rows = histories.first_visits() + visits["visit"].to_numpy()
    likelihoods = oracle.code_likelihoods(world, histories.codes)
    likelihoods[rows] = 1.0  # that there is a visit, and when, is known; its codes are not
    states = oracle.filter_states(world, histories, likelihoods)[rows]
    stages, made = worlds.stages_of(len(world.diseases)), {}
    for place, name in enumerate(world.diseases):
        made[name] = visits.select(*KEYS, boolean_value=pl.col(f"stage_{name}") > 0)
        visits = visits.with_columns(pl.Series(f"oracle_{name}", states @ (stages[:, place] > 0)))
    followed = visits.join(follow(data), on="subject_id", maintain_order="left")
    seen_later = pl.col("event_time") > pl.col("prediction_time")
    made["death"] = followed.filter(seen_later).select(*KEYS, "event_time", "event")
    return made, visits


def measure_oracle(found: pl.DataFrame, name: str, visits: pl.DataFrame, data: str) -> str:
    """Returns how well the oracle orders the held-out patients of a label."""
    splits = pl.read_parquet(Path(data) / events.SPLITS_FILE).filter(split="held_out")
    known = found.join(visits, on=KEYS, maintain_order="left").join(splits, on="subject_id", how="semi")
    said = known[f"oracle_{name}"].to_numpy()
    if known["event" if name == "death" else "boolean_value"].n_unique() < 2:
        return f"not measured, as {known.height:,} patients have one outcome"
    if name == "death":
        days = (known["event_time"] - known["prediction_time"]).dt.total_seconds().to_numpy() / 86_400
        return f"Harrell's C {survival_metrics.concordance(known['event'].to_numpy(), days, said):.3f}"
    return f"AUROC {roc_auc_score(known['boolean_value'].to_numpy(), said):.3f}"


def main() -> None:
    """Runs the command."""
    made, visits = make_labels(FLAGS.data, FLAGS.seed)
    print(f"{visits.height:,} patients with two visits or more")
    for name, found in made.items():
        file = Path(FLAGS.output) / f"{name}.parquet"
        labels.write(found, file)
        print("\n".join([f"{name}: {found.height:,} of {visits.height:,} patients", *labels.outcomes(found)]))
        print(f"  the oracle on held_out: {measure_oracle(found, name, visits, FLAGS.data)}")
        print(f"  written: {file}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("data", None, "What experiments.simulate wrote.", required=True)
    flags.DEFINE_string("output", None, "A folder for the files, one a label.", required=True)
    flags.DEFINE_integer("seed", 0, "Decides the visits.", lower_bound=0)
    command.run(main)
