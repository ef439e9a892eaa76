"""Converts tables of a source to a MEDS data set: prepares them, runs MEDS-Extract, counts and checks the result."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from behrt_jax.data import events
from behrt_jax.sources import counts, eicu, engine, omop, synthea, tables
from behrt_jax.sources.counts import EventCounts
from behrt_jax.sources.engine import Workers
from behrt_jax.sources.tables import RowCounts

SPECS = Path(__file__).parents[1] / "recipes" / "sources"
PREPARED = ("synthea", "omop", "eicu")  # whose tables are prepared before MEDS-Extract reads them
SOURCES = (*PREPARED, "mimic_iv")
ONE_WORKER = Workers()
WORK = ".convert"  # in the output folder, until the conversion is finished


class Source(NamedTuple):
    """What is converted, and how.

    Attributes:
      folder: holds the source's tables.
      name: one of `SOURCES`, or None for tables of any other source, which MEDS-Extract reads as they are.
      spec: a spec of MEDS-Extract; that of the named source by default.
      source_codes: whether codes of OMOP are those of its source in place of standard concepts.
    """

    folder: Path
    name: str | None = None
    spec: Path | None = None
    source_codes: bool = False


class Conversion(NamedTuple):
    """What became of the rows of a source.

    Attributes:
      counts: rows, events and skipped rows of each kind of event.
      missing: tables of the spec that the source lacks.
      empty: tables of the spec that the source has without a usable row.
      num_subjects: the number of patients.
    """

    counts: list[EventCounts]
    missing: list[str]
    empty: list[str]
    num_subjects: int


def convert(
    source: Source,
    output: Path,
    workers: Workers = ONE_WORKER,
    progress: Callable[[list], Iterable] = list,
) -> Conversion:
    """Converts a source to a MEDS data set, and writes what became of its rows to `metadata/conversion.json`.

    Intermediate files are in a folder `.convert` of the output until the conversion is finished. The same call resumes
    an interrupted conversion after its last finished stage.

    Args:
      source: the tables and their spec.
      output: a folder that holds no data set yet.
      workers: how many jobs run a stage, and by which launcher.
      progress: wraps the list of stages to run, to show progress.

    Raises:
      ValueError: a table or the spec cannot be used, the output holds something else, MEDS-Extract is missing or fails,
        or the result does not pass the checks of `data.events`.
    """
    spec_file = _spec_file(source)
    engine.load_spec(spec_file)  # before anything is written
    engine.check_launcher(workers)
    work = _open_work(source, spec_file, output)
    prepared = _prepare(source, work)
    missing, empty = _write_spec(source, spec_file, prepared, work)
    spec = engine.load_spec(work / "spec.yaml")
    folder = work / "tables" if source.name in PREPARED else source.folder
    try:
        engine.run(spec, folder, work, workers, progress)
    except ValueError:
        for name in spec.needed_source_columns():  # an unreadable file, which MEDS-Extract does not name
            tables.check_readable(folder / f"{name}{suffix}" for suffix in tables.SUFFIXES)
        raise
    event_counts = counts.count_events(spec, work, prepared)
    for shard in events.find_shards(work):
        events.read_shard(shard)
    num_subjects = sum(len(subjects) for subjects in engine.read_shards(work).values())
    conversion = Conversion(event_counts, missing, empty, num_subjects)
    _finish(conversion, work, output)
    return conversion


def _spec_file(source: Source) -> Path:
    if source.name is not None and source.name not in SOURCES:
        raise ValueError(f"--source={source.name}: expected one of {', '.join(SOURCES)}, or --spec=FILE alone")
    if source.source_codes and source.name != "omop":
        raise ValueError("--source_codes: applies to --source=omop alone; leave it out")
    if source.name is None and source.spec is None:
        raise ValueError(f"Expected --source (one of {', '.join(SOURCES)}), --spec=FILE or both")
    if source.name == "mimic_iv" and source.spec is None:
        return engine.find_mimic_spec()
    return source.spec or SPECS / f"{source.name}.yaml"


def _open_work(source: Source, spec_file: Path, output: Path) -> Path:
    """Makes the work folder, or finds one that an interrupted conversion of the same input left."""
    work = output / WORK
    if not source.folder.is_dir():
        raise ValueError(f"{source.folder}: no such directory; --input must name the folder of the source's tables")
    if (output / "data").exists() or (output / "metadata").exists():
        raise ValueError(f"{output}: holds a data set already; name another folder, or remove it")
    files = sorted(path for path in source.folder.rglob("*") if path.is_file())
    stats = [(str(path.relative_to(source.folder)), path.stat()) for path in files]
    inputs = {
        "source": [source.name, source.source_codes],
        "spec": spec_file.read_text(),
        "files": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
    }
    record = work / "inputs.json"
    if not record.exists() or json.loads(record.read_text()) != inputs:
        if any(work.glob(".logs/*.done")):
            raise ValueError(f"{work}: left by a conversion of other tables or by another spec; remove this folder")
        shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(inputs))
    return work


def _prepare(source: Source, work: Path) -> dict[str, RowCounts]:
    """Prepares the tables of a named source, unless that was finished before, and returns their row counts."""
    record = work / "prepared.json"
    if source.name not in PREPARED:
        return {}
    if not record.exists():
        folder, output = source.folder, work / "tables"
        prepared = {
            "synthea": lambda: synthea.prepare(folder, output),
            "eicu": lambda: eicu.prepare(folder, output),
            "omop": lambda: omop.prepare(folder, output, source.source_codes),
        }[source.name]()
        record.write_text(json.dumps(dict(prepared)))
    return {name: RowCounts(*counts) for name, counts in json.loads(record.read_text()).items()}


def _write_spec(
    source: Source, spec_file: Path, prepared: dict[str, RowCounts], work: Path
) -> tuple[list[str], list[str]]:
    """Writes the spec without the tables that a named source lacks or that are empty; returns the names of both."""
    from omegaconf import OmegaConf

    spec = engine.load_spec(spec_file)
    names = spec.table_prefixes if source.name in PREPARED else []
    missing = [name for name in names if name not in prepared]
    empty = [name for name in names if name in prepared and prepared[name].read == sum(prepared[name].skipped.values())]
    document = OmegaConf.create({key: value for key, value in spec.raw_doc.items() if key not in (*missing, *empty)})
    if names and len(names) == len(missing) + len(empty):
        raise ValueError(
            f"{source.folder}: no table of {spec_file} has a usable row; expected one of {', '.join(names)}"
        )
    OmegaConf.save(document, work / "spec.yaml")
    return missing, empty


def _finish(conversion: Conversion, work: Path, output: Path) -> None:
    """Moves the data set from the work folder to the output, and removes the work folder."""
    report = {**conversion._asdict(), "counts": [count._asdict() for count in conversion.counts]}
    (work / "metadata" / ".shards.json").unlink()
    (work / "metadata" / "conversion.json").write_text(json.dumps(report, indent=1))
    (work / "metadata").rename(output / "metadata")
    (work / "data").rename(output / "data")
    shutil.rmtree(work)


def summarize(conversion: Conversion) -> list[str]:
    """Returns the lines of a report: a table of rows, events and skipped rows, and the tables without rows."""
    lines = [f"{'table/event':<36}{'rows':>12}{'events':>12}  skipped"]
    for count in conversion.counts:
        skipped = ", ".join(f"{number:,} {reason}" for reason, number in count.skipped.items())
        lines.append(f"{count.table + '/' + count.kind:<36}{count.rows:>12,}{count.events:>12,}  {skipped}".rstrip())
    lines += [f"not found: {', '.join(conversion.missing)}"] if conversion.missing else []
    lines += [f"without a usable row: {', '.join(conversion.empty)}"] if conversion.empty else []
    num_events = sum(count.events for count in conversion.counts)
    return [*lines, f"{num_events:,} events of {conversion.num_subjects:,} patients"]
