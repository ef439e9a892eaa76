"""Damaged files of labels end in labels, each row of which is counted and right, or in one line that names the file."""

import collections
import dataclasses
import datetime
import importlib
import random
import re
import shutil
from pathlib import Path

import polars as pl
import pytest

from behrt_jax.data.events import SPLITS
from behrt_jax.finetuning import data as labeled_data
from behrt_jax.finetuning import setup
from tests import tiny
from tests.data.handmade import START, SUBJECTS, MedsFolder, history

UNKNOWN = (72_000_001, 72_000_002)
KINDS = {"boolean": "classification", "integer": "classification", "classes": "classification"}


KINDS |= {"survival": "survival", "causes": "survival"}


FORMS = ("parquet", "csv", "parquet folder", "csv folder")
COLUMNS = {
    "boolean": {"boolean_value": pl.Boolean},
    "integer": {"boolean_value": pl.Boolean, "integer_value": pl.Int64, "categorical_value": pl.String},
    "classes": {"float_value": pl.Float32, "categorical_value": pl.String},
    "survival": {"event_time": pl.Datetime("us"), "event": pl.Boolean},
    "causes": {"event_time": pl.Datetime("us"), "event": pl.String},
}
KEYS = {"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}


def day(number: float) -> datetime.datetime:
    return START + datetime.timedelta(days=number)


def truth_of(kind: str, subject: int, at: float) -> object:
    """The right label of each row, by a rule that needs no file."""
    number = (subject * 7 + int(at)) % 3
    return {
        "boolean": number > 0,
        "integer": int(number > 0),
        "classes": ("home", "ward", "died")[number],
        "survival": number > 0,
        "causes": (None, "death", "stroke")[number],
    }[kind]


@dataclasses.dataclass
class Files:
    """Labels of one kind: shards to damage before they are written, or the files after.

    Attributes:
      shards: tables of all columns, strings and nulls as in the file.
      kind, form: see `KINDS` and `FORMS`.
      path: where they are written.
      altered: (subject, time) of the rows whose right label a damage may have changed.
      everything: whether all may have.
      rows: how many there are in the files that are to be read.
    """

    shards: list[pl.DataFrame]
    kind: str
    form: str
    path: Path
    altered: set = dataclasses.field(default_factory=set)
    everything: bool = False
    rows: int = 0

    def alter(self, table: pl.DataFrame, mask: list[bool]) -> None:
        keys = table.select(*KEYS).rows() if {*KEYS} <= {*table.select(pl.exclude(pl.List, pl.Struct)).columns} else []
        self.everything |= not keys
        self.altered |= {key for key, hit in zip(keys, mask, strict=False) if hit}


def sound(kind: str, form: str, folder: Path) -> Files:
    """Three rows of each patient; two rows of patients who are not in the data, and one before birth."""
    places = [(subject, at) for subject in SUBJECTS for at in (450, 550.25, 600)]
    places += [(subject, 450) for subject in UNKNOWN] + [(SUBJECTS[0], -10)]
    rows = []
    for subject, at in sorted(places):
        values = dict.fromkeys(COLUMNS[kind])
        if kind in ("survival", "causes"):
            values["event_time"] = day(at + 100)
        values[list(values)[-1] if kind != "integer" else "integer_value"] = truth_of(kind, subject, at)
        rows.append((subject, day(at), *values.values()))
    table = pl.DataFrame(rows, schema={**KEYS, **COLUMNS[kind]}, orient="row")
    shards = [table[:9], table[9:20], table[20:]] if "folder" in form else [table]
    suffix = form.split()[0]
    return Files(shards, kind, form, folder / ("labels" if "folder" in form else f"labels.{suffix}"))


TYPES = [pl.String, pl.Categorical, pl.Boolean, pl.Int8, pl.Int32, pl.Int64, pl.UInt64, pl.Float32, pl.Float64, pl.Null]


TYPES += [
    pl.Date,
    pl.Datetime("ms"),
    pl.Datetime("ns"),
    pl.Datetime("us", "UTC"),
    pl.Time,
    pl.Binary,
    pl.Decimal(20, 2),
]


NAMES = ["", "SUBJECT_ID", "subject_id ", "patient_id", "time", "event", "event_time", "boolean_value", "float_value"]


NAMES += ["integer_value", "categorical_value", "prediction_time", "a\nb", "x", "log_hazard"]


def change_type(files: Files, rng: random.Random, i: int, name: str) -> None:
    kind = rng.choice(TYPES)
    try:
        cast = files.shards[i][name].cast(kind, strict=False)
    except pl.exceptions.PolarsError:
        cast = pl.repeat(None, files.shards[i].height, eager=True).alias(name)
    changed = files.shards[i].with_columns(cast)
    files.everything |= name in KEYS or kind in (pl.Null, pl.Date, pl.Time)
    files.alter(files.shards[i], [True] * changed.height)
    if name == "event" and kind in (pl.String, pl.Categorical):  # true, false and causes stay what they were
        files.altered.clear()
    files.shards[i] = changed


def nest(files: Files, rng: random.Random, i: int, name: str) -> None:
    nested = [pl.concat_list(name), pl.struct(name), pl.concat_list(name).list.slice(1)][rng.randrange(3)]
    files.shards[i] = files.shards[i].with_columns(nested.alias(name))
    files.everything = True


def put_nothing(files: Files, rng: random.Random, i: int, name: str) -> None:
    """Nulls, and words and numbers that stand for one."""
    table = files.shards[i]
    mask = [rng.random() < rng.choice([0.1, 0.5, 1]) for _ in range(table.height)]
    word = rng.choice([None, "", " ", "NA", "nan", "None"])
    value = pl.lit(word if table.schema[name] == pl.String else None)
    value = pl.lit(float("nan")) if table.schema[name].is_float() and rng.random() < 0.5 else value
    files.alter(table, mask)
    files.everything |= name in KEYS
    files.shards[i] = table.with_columns(
        pl.when(pl.Series(mask, dtype=pl.Boolean)).then(value).otherwise(name).alias(name)
    )


def put_other(files: Files, rng: random.Random, i: int, name: str) -> None:
    """Values that are absurd, of another patient or another time."""
    table = files.shards[i]
    mask = [rng.random() < 0.2 for _ in range(table.height)]
    absurd = {"subject_id": [0, -1, 2**62, SUBJECTS[1]]}
    absurd |= {"event": ["x", "", "true", "0", "death "]} if table.schema[name] == pl.String else {}
    times = [day(460), day(-9000), datetime.datetime(9999, 12, 31), datetime.datetime(1, 1, 1), day(450.5)]
    kinds = {
        pl.Boolean: [True, False],
        pl.Int64: [5, -1, 10**12],
        pl.Float32: [0.5, float("inf")],
        pl.String: ["x", "ß"],
    }
    choices = times if table.schema[name].is_temporal() else absurd.get(name, kinds.get(table.schema[name], [None]))
    files.alter(table, mask)
    files.everything |= name in KEYS
    value = pl.lit(rng.choice(choices)).cast(table.schema[name], strict=False)
    files.shards[i] = table.with_columns(
        pl.when(pl.Series(mask, dtype=pl.Boolean)).then(value).otherwise(name).alias(name)
    )


def change_names(files: Files, rng: random.Random, i: int, name: str) -> None:
    other = rng.choice(NAMES)
    files.everything = True
    if rng.random() < 0.4 or other in files.shards[i].columns:
        files.shards[i] = files.shards[i].drop(name)
    else:
        files.shards[i] = files.shards[i].rename({name: other})


def change_order(files: Files, rng: random.Random, i: int, name: str) -> None:
    table = files.shards[i].sample(fraction=1, shuffle=True, seed=rng.randrange(99))
    files.shards[i] = table.select(rng.sample(table.columns, table.width))


def repeat(files: Files, rng: random.Random, i: int, name: str) -> None:
    files.shards[i] = pl.concat([files.shards[i], files.shards[i].sample(fraction=0.3, seed=rng.randrange(99))])


def empty(files: Files, rng: random.Random, i: int, name: str) -> None:
    """An empty shard more, of any types; or all rows of one go."""
    none = files.shards[i][:0]
    if rng.random() < 0.5:
        none = none.select(pl.all().cast(rng.choice([pl.Null, pl.String])))
    if rng.random() < 0.3:
        none = none.select(none.columns[:1])
    if "folder" in files.form and rng.random() < 0.7:
        files.shards.append(none)
    else:
        files.everything, files.shards[i] = True, none


def add_columns(files: Files, rng: random.Random, i: int, name: str) -> None:
    more = [pl.lit(None).alias("notes"), pl.lit("x").alias("trigger"), pl.lit(None).alias("integer_value")]
    more += [
        pl.lit("").alias("categorical_value"),
        pl.lit(float("nan")).alias("float_value"),
        pl.lit(1.5).alias("weight"),
    ]
    more += [pl.lit(None, pl.Boolean).alias("boolean_value"), pl.lit("x").alias("log_hazard")]
    more = [column for column in rng.sample(more, 3) if column.meta.output_name() not in files.shards[i].columns]
    chosen = range(len(files.shards)) if rng.random() < 0.5 else (i,)
    for number in chosen:
        table = files.shards[number]
        files.shards[number] = table.with_columns(
            column for column in more if column.meta.output_name() not in table.columns
        )


TABLE_DAMAGES = [change_type, change_type, change_type, nest, put_nothing, put_nothing, put_other, put_other]


TABLE_DAMAGES += [change_names, change_names, change_order, repeat, empty, add_columns]


def write(files: Files, rng: random.Random | None = None) -> list[Path]:
    """Writes the shards; what CSV cannot hold is text, and dates are now and then in another form."""
    written = []
    forms = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%6f", "%Y/%m/%d %H:%M", "%m/%d/%Y %H:%M", "%d.%m.%Y %H:%M"]
    for number, table in enumerate(files.shards):
        suffix = files.form.split()[0]
        path = files.path / f"part-{number}.{suffix}" if "folder" in files.form else files.path
        path.parent.mkdir(parents=True, exist_ok=True)
        files.rows += table.height
        if suffix == "parquet":
            table.write_parquet(path)
        else:
            nested = [name for name, kind in table.schema.items() if kind.is_nested() or kind in (pl.Binary, pl.Null)]
            table = table.with_columns(
                pl.col(name).cast(pl.String, strict=False) for name in nested if table.schema[name] != pl.List
            )
            table = table.select(pl.exclude(pl.List, pl.Struct, pl.Binary))
            files.rows -= 0 if table.width else files.shards[number].height
            form = rng.choice(forms) if rng and rng.random() < 0.5 else forms[0]
            table.write_csv(path, datetime_format=form)
        written.append(path)
    return written


def cut_off(files: Files, rng: random.Random, path: Path) -> None:
    """The end of a file is lost; of CSV, at least half of the last line."""
    content = path.read_bytes()
    kept = content[: int(len(content) * rng.random() * 0.95)]
    path.write_bytes(kept)
    files.everything = True
    if path.suffix == ".csv":
        files.rows -= content.count(b"\n") - kept.count(b"\n") - (not kept.endswith(b"\n") and bool(kept))


def change_text(files: Files, rng: random.Random, path: Path) -> None:
    """Ways to write the same CSV, or no CSV at all."""
    if path.suffix != ".csv":
        return path.write_bytes(rng.choice([b"", b"PAR1", b"subject_id,prediction_time\n", bytes(100)])) and None
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    choice = rng.randrange(8)
    texts = ["\ufeff" + text, "\r\n".join(lines), "\n\n".join(lines), "\n".join(lines[1:]), text.replace(",", ";")]
    texts += [
        "\n".join([lines[0], *(f"{line},x" for line in lines[1:])]),
        "\n".join([*lines, '"']),
        text.replace("\n", ",\n", 1),
    ]
    files.everything |= choice >= 3
    path.write_text(texts[choice], encoding=rng.choice(["utf-8", "utf-8", "utf-16"]), newline="")


def link(files: Files, rng: random.Random, path: Path) -> None:
    """Moves a file elsewhere and links to it, or to its folder; now and then to nothing."""
    elsewhere = files.path.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    target = elsewhere / f"moved{path.suffix}"
    path.rename(target)
    if "folder" in files.form and rng.random() < 0.5:
        return (path.parent / "linked").symlink_to(elsewhere)
    path.symlink_to(target)
    if rng.random() < 0.2:
        target.unlink()


def move(files: Files, rng: random.Random, path: Path) -> None:
    """A folder named like a file, a name that is a pattern, a circle of links, and files that are none of labels."""
    if "folder" not in files.form:
        return
    place = rng.choice([f"{path.name}/deep/0{path.suffix}", f"a[1]*?{path.suffix}", f"x{path.suffix.upper()}"])
    path.rename(path.parent / "moving")
    (path.parent / place).parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "moving").rename(path.parent / place)
    for name in rng.sample(["_SUCCESS", ".0.parquet.crc", "readme.txt", "._1.parquet", "log.json"], 2):
        (files.path / name).write_bytes(b"x")
    if rng.random() < 0.5:
        (files.path / "again").symlink_to(files.path)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> MedsFolder:
    """Ten patients, six in train; two die after their last visit."""
    folder = MedsFolder(tmp_path_factory.mktemp("meds"))
    for name, subjects in (("0", SUBJECTS[:5]), ("1", SUBJECTS[5:])):
        rows = [row for subject in subjects for row in history(subject)]
        folder.shard(name, sorted([*rows, (subjects[1], 575, "MEDS_DEATH")], key=lambda row: (row[0], row[1] or -1)))
    folder.splits({subject: SPLITS[max(0, i - 4) // 2] for i, subject in enumerate(SUBJECTS)})
    return folder


def read(place: MedsFolder, files: Files) -> tuple[dict, list[str]]:
    """Reads labels as fine-tuning does."""
    config = importlib.import_module(f"configs.{KINDS[files.kind]}").get_config()
    data = {"path": str(place.root), "prepared_dir": str(place.prepared_dir), "min_patients": 2}
    config.update_from_flattened_dict({"labels": str(files.path), **{f"data.{key}": data[key] for key in data}})
    with tiny.collect_messages() as messages:
        return labeled_data.read_splits(setup.read(config.to_dict()), None)[1], messages


def number_in(said: list[str], pattern: str) -> int:
    return sum(int(found.replace(",", "")) for line in said for found in re.findall(pattern, line))


def check_labels(files: Files, splits: dict, said: list[str]) -> None:
    """Every row is counted, and rows that no damage touched have their right label."""
    kept = sum(len(found.labels) for found in splits.values())
    assert kept == number_in(said, r"^(?:train|tuning|held_out): ([\d,]+) labels")
    lost = number_in(said, r"([\d,]+) of [\d,]+ rows repeat another; dropped")
    lost += number_in(said, r"([\d,]+) (?:of unknown subjects|before birth|at or after death)")
    lost += number_in(said, r"^labels left out: ([\d,]+) without an event before")
    assert kept + lost == files.rows
    for found in splits.values():
        labels = found.labels
        for i, (subject, time) in enumerate(
            zip(labels.subject_ids.tolist(), labels.prediction_times.tolist(), strict=True)
        ):
            if files.everything or (subject, time) in files.altered:
                continue
            expected = truth_of(files.kind, subject, (time - START) / datetime.timedelta(days=1))
            if labels.kind == "survival":
                assert labels.days[i] == 100
                assert (labels.names[labels.events[i] - 1] if labels.events[i] else None) == (
                    {True: "event", False: None}[expected] if files.kind == "survival" else expected
                )
            else:
                value = labels.values[i, 0]
                value = labels.names[int(value)] if labels.kind == "multiclass" else value
                assert value == (str(expected) if labels.kind == "multiclass" else expected)


def check_line(files: Files, message: str, in_table: bool) -> None:
    assert "\n" not in message and len(message) < 1500, message
    assert str(files.path) in message or "elsewhere" in message, message
    without_paths = re.sub(r"/\S+", "", message).partition("expected")[0]
    assert not re.search(r"7[12]0000\d\d|(19|20)\d\d-\d\d", without_paths), message
    if in_table:  # the column is named, or the rows that lack their label with it
        assert any(part in message for part in ("column", "rows share", "no label is left", "holds no labels")), message


def check_damaged(place: MedsFolder, folder: Path, seeds: range) -> collections.Counter:
    """Damages sound labels and reads them; counts how that ends."""
    ends = collections.Counter()
    for seed in seeds:
        print(f"seed {seed}")
        rng = random.Random(seed)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        files = sound(list(KINDS)[seed % 5], FORMS[seed // 5 % 4], folder)
        if in_table := rng.random() < 0.7:
            for _ in range(rng.choice([1, 1, 1, 2])):
                i = rng.randrange(len(files.shards))
                if files.shards[i].width:
                    damage, name = rng.choice(TABLE_DAMAGES), rng.choice(files.shards[i].columns)
                    damage(files, rng, i, name)
        written = write(files, rng)
        if in_file := not in_table or rng.random() < 0.2:
            rng.choice([cut_off, change_text, link, move])(files, rng, rng.choice(written))
        try:
            splits, said = read(place, files)
        except ValueError as error:
            check_line(files, str(error), not in_file), ends.update(["one line"])
        else:
            check_labels(files, splits, said)
            assert not any(re.search(r"7[12]0000\d\d", line) for line in said), seed
            ends.update(["labels"])
    return ends


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_sound_labels_are_read(place, tmp_path, kind, form):
    files = sound(kind, form, tmp_path / "labels")
    write(files)
    splits, said = read(place, files)
    check_labels(files, splits, said)
    assert sum(len(found.labels) for found in splits.values()) == 3 * 10 - 2 and files.rows == 33


def test_some_damaged_labels(place, tmp_path):
    ends = check_damaged(place, tmp_path / "damaged", range(40))
    assert ends["labels"] >= 8 and ends["one line"] >= 8


@pytest.mark.slow
def test_many_damaged_labels(place, tmp_path):
    ends = check_damaged(place, tmp_path / "damaged", range(1000, 1240))
    assert ends["labels"] >= 60 and ends["one line"] >= 60
