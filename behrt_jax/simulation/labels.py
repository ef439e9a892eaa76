"""Labels of simulated patients with known truth, one prediction time per patient, for studies with few labels."""

import dataclasses
from pathlib import Path

import polars as pl
from sklearn.metrics import roc_auc_score

from behrt_jax.data import events
from behrt_jax.data.hashing import hash_fraction
from behrt_jax.labels.label_files import KEYS
from behrt_jax.metrics import survival
from behrt_jax.simulation import oracle, simulator
from behrt_jax.simulation import world as worlds

INDEX_CHANCE = 0.1  # probability of each visit after the first to be the index, unless an earlier one is
MAX_COMPARED = 1000  # held-out patients for the bound of Harrell's C, whose memory grows with their square
MONTH = pl.duration(seconds=worlds.SECONDS_PER_MONTH)


def choose_visits(truth: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Chooses the index visit of each patient of a truth table: the first one selected by a hash, but the very first.

    Whether a visit is the index does not depend on later events. A draw among all visits of a patient would favour
    visits with few later ones, so that the choice itself would reveal an early death. Patients without a selected
    visit are left out.
    """
    later = truth.filter(pl.col("visit") > 0).sort("subject_id", "visit")
    fractions = hash_fraction(seed, later["subject_id"].to_numpy(), later["visit"].to_numpy())
    return later.filter(fractions < INDEX_CHANCE).unique("subject_id", keep="first", maintain_order=True)


def make_labels(data: str, seed: int) -> tuple[dict[str, pl.DataFrame], pl.DataFrame]:
    """Returns labels by name, and their index visits with the oracle's predictions.

    The oracle knows what a model is given at the index: sex, the earlier visits, the time of the index, and that there
    is a visit, so that the patient is alive and observed; not its codes. `oracle_NAME` is the probability that the
    patient has the disease at the visit; `oracle_death` ranks times to death (negative `oracle.expected_months`).
    `blind_NAME` is the same of an oracle that sees no values of measurements, if there are measurements. Times to death
    are censored when the patient leaves observation, at a rate that is the same for all.

    Raises:
      ValueError: the folder is not a simulated data set, or was written without the end of follow-up.
    """
    world, file = worlds.load_world(data), Path(data) / simulator.TRUTH_FILE
    truth = pl.read_parquet(file)
    if missing := {"months_left", "dies"} - {*truth.columns}:
        raise ValueError(f"{file}: column '{min(missing)}' is missing; simulate again with experiments.simulate")
    visits = choose_visits(truth, seed).rename({"time": "prediction_time"})
    histories = oracle.read_histories(data, visits["subject_id"])
    rows = histories.first_visits() + visits["visit"].to_numpy()
    stages, seen = worlds.stages_of(len(world.diseases)), {"oracle": histories}
    if len(world.value_deviations):
        seen["blind"] = dataclasses.replace(histories, values=None)
    for kind, own in seen.items():
        states = oracle.states_before(world, own)[rows]
        scores = {name: states @ (stages[:, column] > 0) for column, name in enumerate(world.diseases)}
        scores["death"] = -oracle.expected_months(world, histories.sex, histories.month[rows], states)
        visits = visits.with_columns(**{f"{kind}_{name}": values for name, values in scores.items()})
    labels = {name: visits.select(*KEYS, boolean_value=pl.col(f"stage_{name}") > 0) for name in world.diseases}
    ends = pl.col("prediction_time") + pl.col("months_left") * MONTH
    labels["death"] = visits.select(*KEYS, event_time=ends, event=pl.col("dies"))
    return labels, visits


def measure_oracle(found: pl.DataFrame, name: str, visits: pl.DataFrame, data: str) -> str:
    """Describes how well the oracle ranks the held-out patients of a label, with values and without."""
    splits = pl.read_parquet(Path(data) / events.SPLITS_FILE).filter(split="held_out")
    held_out = found.join(visits, on=KEYS, maintain_order="left").join(splits, on="subject_id", how="semi")
    scores = held_out.select(f"^(oracle|blind)_{name}$").to_numpy().T
    if held_out["event" if name == "death" else "boolean_value"].n_unique() < 2:
        return f"not measured, as {held_out.height:,} patients have one outcome"
    if name == "death":
        days = (held_out["event_time"] - held_out["prediction_time"]).dt.total_seconds().to_numpy() / 86_400
        figures = [survival.concordance(held_out["event"].to_numpy(), days, each) for each in scores]
        return f"Harrell's C {_list(figures)}; no score is expected to exceed {bound_concordance(held_out, data):.3f}"
    return f"AUROC {_list([roc_auc_score(held_out['boolean_value'].to_numpy(), each) for each in scores])}"


def _list(figures: list[float]) -> str:
    """Formats a figure, and a second one of the oracle without values."""
    return f"{figures[0]:.3f}" + "".join(f" ({each:.3f} without values)" for each in figures[1:])


def bound_concordance(visits: pl.DataFrame, data: str) -> float:
    """Returns `oracle.best_concordance` for the index visits, or for the first `MAX_COMPARED` of them."""
    visits, world = visits.sort("subject_id").head(MAX_COMPARED), worlds.load_world(data)
    histories = oracle.read_histories(data, visits["subject_id"])
    rows = histories.first_visits() + visits["visit"].to_numpy()
    states = oracle.states_before(world, histories)[rows]
    return oracle.best_concordance(world, histories.sex, histories.month[rows], states)
