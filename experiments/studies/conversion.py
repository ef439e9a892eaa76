"""Measures conversion and preparation: events a minute from CSV to tokens, and the peak of memory by patients.

python -m experiments.studies.conversion [--patients=2000,20000] [--workdir=runs/conversion]

The source is the bundled patients, without allergies and imaging, as CSV tables of Synthea, repeated under new ids.
Each size runs in a process of its own. Memory is what the process holds itself, read ten times a second; files that it
maps are left out, as the system takes their pages back. CSV files take 150 kB a patient in the workdir, and are removed
at the end.
"""

import math
import multiprocessing
import re
import shutil
import time
from pathlib import Path

import polars as pl
from absl import flags

from behrt_jax.data import events
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import prepare
from behrt_jax.recipes import small
from behrt_jax.sources.convert import Source, convert
from experiments import _cli
from experiments.studies import sweep

KINDS = ("CAREPLAN", "CONDITION", "IMMUNIZATION", "MEDICATION", "OBSERVATION", "PROCEDURE")
POLL = 0.1  # seconds


def read_tables(folder: Path) -> dict[str, pl.DataFrame]:
    """Returns the tables of Synthea from which a MEDS data set of its kind was made, with text in all columns."""
    rows = pl.concat([pl.read_parquet(shard) for shard in events.find_shards(folder)])
    part = pl.col("code").str.split("//").list
    rows = rows.select(
        PATIENT=pl.col("subject_id").cast(pl.String),
        ENCOUNTER=pl.col("visit_id").cast(pl.String),
        DATE=pl.col("time").dt.strftime("%Y-%m-%dT%H:%M:%SZ"),
        VALUE=pl.coalesce(pl.col("numeric_value").cast(pl.String), "text_value"),
        kind=part.first(),
        CODE=part.last(),
    )

    def of_patients(kind: str, column: str, name: str) -> pl.DataFrame:
        found = rows.filter(pl.col("kind") == kind).select(Id="PATIENT", **{name: column})
        return found.unique("Id", keep="first", maintain_order=True)

    patients = of_patients("MEDS_BIRTH", "DATE", "BIRTHDATE")
    patients = patients.join(of_patients("MEDS_DEATH", "DATE", "DEATHDATE"), on="Id", how="left")
    for kind in ("RACE", "ETHNICITY", "GENDER"):
        patients = patients.join(of_patients(kind, "CODE", kind), on="Id", how="left")
    visits = rows.filter(pl.col("kind") == "ENCOUNTER")
    visits = visits.select("PATIENT", "DATE", "CODE", Id="ENCOUNTER", ENCOUNTERCLASS="CODE")
    tables = {f"{kind.lower()}s": rows.filter(pl.col("kind") == kind).drop("kind") for kind in KINDS}
    return {"patients": patients, "encounters": visits, **tables}


def write_tables(tables: dict[str, pl.DataFrame], patients: int, folder: Path) -> None:
    """Writes tables of a number of patients as CSV; repeats them under new ids, and leaves out the last of too many."""
    folder.mkdir(parents=True)
    ids = tables["patients"].select("Id")
    for name, table in tables.items():
        key = "Id" if name == "patients" else "PATIENT"
        with (folder / f"{name}.csv").open("wb") as file:
            for copy in range(math.ceil(patients / len(ids))):
                kept = ids.head(patients - copy * len(ids)).rename({"Id": key})
                rows = table.join(kept, on=key, how="semi", maintain_order="left")
                rows.with_columns(pl.col(key) + f"-{copy}").write_csv(file, include_header=not copy)


def run(folder: Path, figures) -> None:
    """Converts the tables of a folder and prepares the result; puts the events, and the seconds of both, in a queue."""
    begin = time.perf_counter()
    conversion = convert(Source(folder / "csv", "synthea"), folder / "meds")
    converted = time.perf_counter()
    figures.put(("convert", sum(count.events for count in conversion.counts), converted - begin))
    options = {**small.get_config().data, "path": str(folder / "meds"), "prepared_dir": str(folder / "prepared")}
    prepare(DataConfig(**options))
    figures.put(("prepare", 0, time.perf_counter() - converted))


def held_mib(process: int) -> float:
    """Returns the memory that a process holds without mapped files, in MiB; NaN where the system does not tell."""
    status = Path(f"/proc/{process}/status")
    found = re.search(r"RssAnon:\s*(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else math.nan


def measure(folder: Path) -> dict[str, float]:
    """Runs `run` in a process of its own; returns the events, and seconds and peak memory in MiB of both parts.

    Raises:
      ValueError: the process failed; it printed why.
    """
    context = multiprocessing.get_context("spawn")
    figures = context.Queue()
    process = context.Process(target=run, args=(folder, figures))
    process.start()
    found, peak = {}, 0.0
    while len(found) < 5:
        alive = process.is_alive()
        peak = max(held_mib(process.pid or 0), peak)
        while not figures.empty():
            part, number, seconds = figures.get()
            found |= {"events": number} if number else {}
            found |= {f"{part}_seconds": seconds, f"{part}_mib": peak}
            peak = 0.0
        if not alive and len(found) < 5:
            raise ValueError(f"{folder}: the conversion or the preparation failed with status {process.exitcode}")
        process.join(POLL)
    process.join()
    return found


def format_markdown(results: dict[int, dict[str, float]]) -> str:
    """Formats the figures by the number of patients."""
    heads = ["patients", "events", "converted in, s", "prepared in, s", "events a minute"]
    heads += ["peak memory converting, MiB", "preparing, MiB"]
    rows = []
    for patients, found in results.items():
        seconds = found["convert_seconds"], found["prepare_seconds"]
        numbers = patients, found["events"], *seconds, found["events"] / sum(seconds) * 60
        rows.append([f"{each:,.0f}" for each in (*numbers, found["convert_mib"], found["prepare_mib"])])
    return sweep.format_table(heads, rows)


def main() -> None:
    """Runs the command."""
    folder = Path(FLAGS.workdir)
    tables, results = read_tables(Path(FLAGS.data)), {}
    for patients in map(int, FLAGS.patients):
        size = folder / str(patients)
        shutil.rmtree(size, ignore_errors=True)
        write_tables(tables, patients, size / "csv")
        results[patients] = measure(size)
        shutil.rmtree(size)
        print(f"{patients:,} patients: {results[patients]}", flush=True)
    (folder / "conversion.md").write_text(table := format_markdown(results))
    print(f"\n{table}\nwritten: {folder / 'conversion.md'}")


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_list("patients", ["2000", "20000"], "Numbers of patients.")
    flags.DEFINE_string("data", "data/synthea-1151", "The MEDS data set, of Synthea, whose patients are repeated.")
    flags.DEFINE_string("workdir", "runs/conversion", "Where tables are written while they are measured.")
    _cli.run(main)
