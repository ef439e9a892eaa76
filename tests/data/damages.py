"""Random damages to a small sound MEDS data set, for tests of what readers do with it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FIRST_ID = 71_000_000
PATIENTS, SHARDS = 24, 3
DAY = 86_400_000_000  # microseconds
SPLITS = ["train", "train", "train", "tuning", "held_out", "train"]
Tables = dict[str, pa.Table]


def sound(rng: np.random.Generator) -> Tables:
    """Makes three shards of eight patients: static codes, birth, visits with values, some deaths."""
    tables = {}
    for shard in range(SHARDS):
        rows = []
        for subject in range(FIRST_ID + shard * 8, FIRST_ID + shard * 8 + 8):
            rows.append((subject, None, f"SECRET//SEX//{subject % 2}", None, None))
            birth = int(rng.integers(-9000, 5000)) * DAY
            rows.append((subject, birth, "MEDS_BIRTH", None, None))
            at = birth
            for visit in range(int(rng.integers(2, 6))):
                at += int(rng.integers(1, 400)) * DAY + int(rng.integers(0, DAY))
                codes = rng.choice(["SECRET//A", "SECRET//B", "SECRET//LAB [x]", "SECRET//C*"], 3)
                rows += [
                    (subject, at + i, code, float(rng.normal()) if "LAB" in code else None, visit)
                    for i, code in enumerate(codes)
                ]
            if rng.random() < 0.3:
                rows.append((subject, at + DAY, "MEDS_DEATH", None, None))
        names = ("subject_id", "time", "code", "numeric_value", "visit_id")
        kinds = (pa.int64(), pa.timestamp("us"), pa.string(), pa.float32(), pa.int64())
        columns = zip(*rows, strict=True)
        arrays = [pa.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        tables[f"{shard}.parquet"] = pa.table(dict(zip(names, arrays, strict=True)))
    return tables


def sound_splits() -> pa.Table:
    ids = [FIRST_ID + i for i in range(PATIENTS)]
    return pa.table({"subject_id": ids, "split": [SPLITS[i % len(SPLITS)] for i in range(PATIENTS)]})


def set_column(table: pa.Table, name: str, column) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column) if name in table.column_names else table


def _pick(rng: np.random.Generator, options):
    return options[int(rng.integers(len(options)))]


# Damages of one shard: from a table to another.
def retype(rng, table):
    """Another type of a column, with the same content where that is possible."""
    name = _pick(rng, ["subject_id", "time", "code", "numeric_value", "visit_id"])
    if name not in table.column_names:
        return table
    column = table[name].combine_chunks() if table.num_rows else pa.array([], table[name].type)
    kinds = {
        "subject_id": [pa.int32(), pa.uint32(), pa.uint64(), pa.float64(), pa.string(), pa.decimal128(20, 0)],
        "time": [
            *(pa.timestamp(unit) for unit in ("s", "ms", "ns")),
            pa.timestamp("us", "UTC"),
            pa.date32(),
            pa.int64(),
        ],
        "code": [pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
        "numeric_value": [pa.float64(), pa.float16(), pa.string(), pa.bool_(), pa.int16(), pa.decimal128(30, 9)],
        "visit_id": [pa.float64(), pa.string(), pa.uint64(), pa.int8(), pa.large_string(), pa.bool_(), pa.float16()],
    }[name]
    kind = _pick(rng, [*kinds, pa.null(), "list", "struct", "dictionary"])
    try:
        if kind == "list":
            changed = pa.array([None if v is None else [v] for v in column.to_pylist()])
        elif kind == "struct":
            changed = pa.array([None if v is None else {"value": v} for v in column.to_pylist()])
        elif kind == "dictionary":
            changed = column.dictionary_encode()
        elif kind == pa.null():
            changed = pa.nulls(len(column))
        else:
            changed = column.cast(kind, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return table
    return set_column(table, name, changed)


def put_nulls(rng, table):
    name = _pick(rng, table.column_names)
    if not table.num_rows:
        return table
    mask = rng.random(table.num_rows) < _pick(rng, [0.02, 0.5, 1.0])
    column = table[name].combine_chunks()
    return set_column(table, name, pc.if_else(pa.array(mask), pa.scalar(None, column.type), column))


def reorder(rng, table):
    order = np.arange(table.num_rows)
    how = rng.integers(3)
    if how == 0:
        rng.shuffle(order)
    elif how == 1:
        order = order[::-1]
    elif len(order) > 2:
        i = int(rng.integers(len(order) - 1))
        order[[i, i + 1]] = order[[i + 1, i]]
    return table.take(pa.array(order))


def drop_or_rename(rng, table):
    name = _pick(rng, table.column_names)
    how = int(rng.integers(4))
    if how == 0 and len(table.column_names) > 1:
        return table.drop_columns([name])
    if how == 1:  # a name twice
        return table.append_column(name, table[name])
    new = {2: f" {name}\n", 3: name.upper()}.get(how, "SUBJECT")
    return table.rename_columns([new if each == name else each for each in table.column_names])


def reverse_columns(rng, table):
    del rng
    return table.select(range(table.num_columns)[::-1])


def _put(rng, table, name, values):
    """Puts some of the values at random places of a column."""
    if name not in table.column_names or not table.num_rows:
        return table
    column = table[name].to_pylist()
    for place in rng.integers(0, len(column), int(rng.integers(1, 6))):
        column[place] = _pick(rng, values)
    try:
        return set_column(table, name, pa.array(column, table.schema.field(name).type))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, TypeError):
        return table


def odd_values(rng, table):
    return _put(rng, table, "numeric_value", [float("nan"), float("inf"), -float("inf"), 3e38, -0.0, 1e-45, 0.0])


def odd_codes(rng, table):
    odd = ["", " ", "[UNK]", "[PAD]", "[CLS]", "a\nb", "é\u0000😀", "x" * 5000, "SECRET//A//Q1", "*", "[", "MEDS_DEATH"]
    return _put(rng, table, "code", [*odd, "MEDS_BIRTH", "meds_birth", "//", '"', "SECRET//LAB [x]//Q2"])


def odd_ids(rng, table):
    return _put(rng, table, "subject_id", [0, -1, 2**63 - 1, -(2**63), FIRST_ID, FIRST_ID + 30])


def odd_visits(rng, table):
    return _put(rng, table, "visit_id", [0, -1, 2**63 - 1, float("nan"), "", "nan", None])


def odd_times(rng, table):
    """Far times, in order where they are last or first."""
    if "time" not in table.column_names or not pa.types.is_timestamp(table["time"].type) or not table.num_rows:
        return table
    column = table["time"].cast(pa.int64(), safe=False).to_pylist()
    far = [253_370_764_800_000_000, -62_135_596_800_000_000, 2**63 - 1, -(2**63) + 1, 0, 4_102_444_800_000_000]
    for place in rng.integers(0, len(column), int(rng.integers(1, 3))):
        column[place] = _pick(rng, far)
    return set_column(table, "time", pa.array(column, pa.int64()).cast(table["time"].type))


def more_columns(rng, table):
    extra = {
        "hadm_id": pa.array(rng.integers(0, 3, table.num_rows)),
        "encounter_id": pa.nulls(table.num_rows),
        "text_value": pa.array(["x"] * table.num_rows, pa.string()),
        "a\nb": pa.array([[1]] * table.num_rows, pa.list_(pa.int64())),
        "visit_name": pa.array(["v"] * table.num_rows, pa.string()),
        "token": pa.array(["t"] * table.num_rows, pa.string()),
        "split": pa.array(["held_out"] * table.num_rows, pa.string()),
    }
    for name in extra:
        if rng.random() < 0.4 and name not in table.column_names:
            table = table.append_column(name, extra[name])
    return table


def empty(rng, table):
    how = int(rng.integers(4))
    if how == 0:
        return table.slice(0, 0)
    if how == 1:
        return pa.table({})
    if how == 2:
        return pa.table({name: pa.nulls(0) for name in table.column_names})
    return pa.table({"note": pa.array([], pa.list_(pa.string()))})


def some_rows(rng, table):
    """Rows twice, or only some of them."""
    count = table.num_rows
    if not count:
        return table
    order = np.sort(rng.integers(0, count, count)) if rng.random() < 0.5 else np.arange(int(rng.integers(1, count + 1)))
    return table.take(pa.array(order))


ON_TABLES: tuple[Callable, ...] = (
    *(retype, retype, retype, put_nulls, reorder, drop_or_rename, reverse_columns, odd_values, odd_codes, odd_ids),
    *(odd_visits, odd_times, more_columns, empty, some_rows),
)


# Damages of files, once they are written.
def cut(rng, root, file):
    content = file.read_bytes()
    file.write_bytes(content[: int(rng.choice([0, 4, len(content) // 2, len(content) - 5]))])


def scramble(rng, root, file):
    content = bytearray(file.read_bytes())
    at = int(rng.integers(len(content)))
    length = int(rng.integers(1, 200))
    content[at : at + length] = rng.bytes(len(content[at : at + length]))
    file.write_bytes(content)


def not_parquet(rng, root, file):
    file.write_text("subject_id,time,code\n71000001,2000-01-01,SECRET//A\n")


def rename(rng, root, file):
    names = ["part[1].parquet", "a*?.parquet", "B.PARQUET", "ü 1.parquet", "_x.parquet", ".x.parquet", "x.pq", "x"]
    file.rename(file.with_name(_pick(rng, names)))


def nest(rng, root, file):
    """Into a folder named like a file, deep down, or behind a link."""
    how = int(rng.integers(3))
    if how < 2:
        folder = file.parent / _pick(rng, [f"{file.name}.parquet", "a/b/c", "train", "x=1", "_hidden"])
    else:
        folder = root.parent / f"elsewhere-{file.name}"
    folder.mkdir(parents=True, exist_ok=True)
    file.rename(folder / "part-0.parquet")
    if how == 2:
        (root / "data" / f"link-{file.stem}").symlink_to(folder if rng.random() < 0.5 else folder / "gone")


def beside(rng, root, file):
    """Further files that are no shards, a link back, a copy."""
    name = _pick(
        rng, ["_SUCCESS", f".{file.name}.crc", f"._{file.name}", "README.md", "loop", "pipe.parquet", "copy.parquet"]
    )
    target = file.with_name(name)
    if target.exists():
        return
    if name == "loop":
        target.symlink_to(root / "data")
    elif name == "pipe.parquet":
        os.mkfifo(target)
    elif name == "copy.parquet":
        shutil.copy(file, target) if rng.random() < 0.5 else target.symlink_to(file)
    else:
        target.write_text("x")


def remove(rng, root, file):
    file.unlink()


ON_FILES = (cut, scramble, not_parquet, rename, rename, nest, nest, nest, beside, beside, beside, remove)


# Damages of the splits.
def damage_splits(rng: np.random.Generator, root: Path) -> None:
    file = root / "metadata" / "subject_splits.parquet"
    table, how = pq.read_table(file), int(rng.integers(12))
    names = table["split"].to_pylist()
    changes = {
        0: lambda: table.slice(0, int(rng.integers(0, PATIENTS))),
        1: lambda: pa.concat_tables([table, table.slice(0, 3)]),
        2: lambda: pa.concat_tables([table, set_column(table, "split", pa.array(names[::-1]))]),
        3: lambda: set_column(table, "split", table["split"].combine_chunks().dictionary_encode()),
        4: lambda: set_column(table, "split", pa.array([[name] for name in names])),
        5: lambda: set_column(table, "split", pa.array([{"train": 0, "tuning": 1, "held_out": 2}[x] for x in names])),
        6: lambda: set_column(table, "split", pa.array([None if rng.random() < 0.2 else name for name in names])),
        7: lambda: set_column(table, "subject_id", table["subject_id"].cast(_pick(rng, [pa.string(), pa.float64()]))),
        8: lambda: set_column(table, "split", pa.array([name.replace("held_out", "test") for name in names])),
        9: lambda: table.drop_columns([_pick(rng, table.column_names)]),
        10: lambda: set_column(table, "subject_id", table["subject_id"].cast(_pick(rng, [pa.int32(), pa.uint64()]))),
        11: lambda: pa.table({"subject_id": pa.nulls(PATIENTS), "split": pa.nulls(PATIENTS)}),
    }
    pq.write_table(changes[how](), file)
    if rng.random() < 0.3:
        _pick(rng, [cut, scramble, not_parquet, remove])(rng, root, file)
    elif rng.random() < 0.3:
        file.rename(root / "splits")
        if rng.random() < 0.5:
            file.symlink_to(root / _pick(rng, ["splits", "gone"]))
        else:
            file.mkdir()
            (root / "splits").rename(file / "0.parquet")


def write(rng: np.random.Generator, root: Path, most: int = 3) -> list[str]:
    """Writes a data set with one to `most` damages; returns their names."""
    tables, done = sound(rng), []
    on_files = []
    for _ in range(int(rng.integers(1, most + 1))):
        kind = rng.random()
        name = _pick(rng, sorted(tables))
        if kind < 0.6:
            damage = _pick(rng, ON_TABLES)
            everywhere = rng.random() < 0.3
            seed = int(rng.integers(2**31))
            for each in sorted(tables) if everywhere else [name]:
                tables[each] = damage(np.random.default_rng(seed), tables[each])
            done.append(f"{damage.__name__}({'all' if everywhere else name})")
        else:
            damage = _pick(rng, (*ON_FILES, damage_splits, damage_splits, damage_splits))
            on_files.append((damage, name))
            done.append(f"{damage.__name__}({name})")
    (root / "data").mkdir(parents=True)
    (root / "metadata").mkdir()
    pq.write_table(sound_splits(), root / "metadata" / "subject_splits.parquet")
    for name, table in tables.items():
        options = {"compression": _pick(rng, ["zstd", "none", "snappy"]), "row_group_size": int(rng.choice([7, 1000]))}
        pq.write_table(table, root / "data" / name, use_dictionary=bool(rng.random() < 0.5), **options)
    for damage, name in on_files:
        if damage is damage_splits:
            if (root / "metadata" / "subject_splits.parquet").is_file():
                _try(damage_splits, rng, root)
        elif (root / "data" / name).is_file():
            damage(rng, root, root / "data" / name)
    return done


def _try(damage, *arguments) -> None:
    try:
        damage(*arguments)
    except (pa.ArrowInvalid, OSError, KeyError):  # what was damaged before cannot be damaged this way
        pass


def visible_files(folder: Path, above: tuple[str, ...] = ()) -> list[Path]:
    """Lists what a reader should read, written apart from it: by `os.scandir`, links followed, circles left out."""
    if (real := os.path.realpath(folder)) in above:
        return []
    found = []
    for entry in os.scandir(folder):
        if entry.name[0] in "._":
            continue
        if entry.is_dir():
            found += visible_files(Path(entry.path), (*above, real))
        elif entry.is_file() and entry.name.lower().endswith(".parquet"):
            found.append(Path(entry.path))
    return found


def contents(root: Path) -> tuple[int, int]:
    """Counts the rows and the subjects of all visible shards, by pyarrow."""
    rows, ids = 0, set()
    for file in visible_files(root / "data"):
        table = pq.ParquetFile(file).read()
        rows += table.num_rows
        ids.update(table["subject_id"].to_pylist() if table.num_rows else [])
    return rows, len(ids)
