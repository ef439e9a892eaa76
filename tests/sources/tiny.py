"""Small tables of sources, and conversions of them."""

from pathlib import Path

import polars as pl

from behrt_jax.data import events
from behrt_jax.sources.convert import Conversion, Source, convert

SHARED = Path(__file__).parents[3] / "shared" / "data"
SYNTHEA = {
    "patients": "Id,BIRTHDATE,DEATHDATE,RACE,ETHNICITY,GENDER\n"
    "a,1990-03-01,,white,hispanic,F\nb,1950-07-09,2020-01-02,black,nonhispanic,M\nc,2001-01-01,,asian,nonhispanic,F\n"
    "d,not a date,,white,hispanic,F\n",
    "encounters": "Id,START,STOP,PATIENT,ENCOUNTERCLASS,CODE,DESCRIPTION\n"
    "e1,2010-05-06T08:00:00Z,,a,wellness,1,Check\ne2,2019-12-31T10:30:00Z,,b,inpatient,2,Stay\n"
    "e3,2012-01-01T00:00:00Z,,nobody,wellness,1,Check\n",
    "conditions": "START,STOP,PATIENT,ENCOUNTER,SYSTEM,CODE,DESCRIPTION\n"
    '2010-05-06,,a,e1,http://snomed.info/sct,44054006,"Diabetes, type 2"\n'
    "2019-12-31,,b,e2,http://snomed.info/sct,22298006,Infarction\n1900-01-01,,b,e2,,22298006,Infarction\n"
    "soon,,c,,,22298006,Infarction\n,,c,,,22298006,Infarction\n,,,,,22298006,Infarction\n",
    "observations": "DATE,PATIENT,ENCOUNTER,CATEGORY,CODE,DESCRIPTION,VALUE,UNITS,TYPE\n"
    "2010-05-06T08:00:00Z,a,e1,,8302-2,Height,165.5,cm,numeric\n"
    "2010-05-06T08:00:00Z,a,e1,,8302-2,Height,165.5,cm,numeric\n"
    "2010-05-06T08:00:00Z,a,e1,,72166-2,Smoking,Never smoker,,text\n"
    "2010-05-06T08:00:00Z,a,e1,,8302-2,Height,166,cm,numeric\n2010-05-06T08:00:00Z,c,,,,,7,,\n",
    "immunizations": "DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION\n2010-05-06T08:00:00Z,a,e1,08,Hep B\n",
    "allergies": "START,STOP,PATIENT,ENCOUNTER,CODE,SYSTEM,DESCRIPTION\n2010-05-06,,a,e1,1191,RxNorm,Aspirin\n",
    "supplies": "DATE,PATIENT,ENCOUNTER,CODE,DESCRIPTION,QUANTITY\n",
}


def write_csv(folder: Path, tables: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


def convert_to(output: Path, folder: Path, name: str | None = None, **options) -> tuple[Conversion, pl.DataFrame]:
    """Returns a conversion and its events."""
    conversion = convert(Source(folder, name, **options), output)
    return conversion, read_events(output)


def read_events(output: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(shard) for shard in events.find_shards(output)])


def find_skipped(conversion: Conversion) -> dict[str, dict[str, int]]:
    return {f"{count.table}/{count.kind}": count.skipped for count in conversion.counts if count.skipped}
