"""What several folders of tests share: the bundled patients, prepared once, and how small programs are compiled."""

import os
from importlib.metadata import version
from pathlib import Path

import jax
import pytest

from behrt_jax.data import dataset
from behrt_jax.data.config import DataConfig
from behrt_jax.data.prepare import Prepared, prepare
from tests import tiny
from tests.data import handmade

# Tests compile thousands of small programs. XLA's older way of compiling fused loops takes half the time and gives the
# same numbers but for rounding. An XLA_FLAGS of one's own, an empty one too, wins. The versions for jax-metal lack it.
if tuple(map(int, version("jaxlib").split(".")[:2])) > (0, 5):
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def bundled_config(tmp_path_factory) -> DataConfig:
    """The bundled patients without measurements, as the default recipe has them."""
    return DataConfig(
        path=str(ROOT / "data" / "synthea-1151"),
        prepared_dir=str(tmp_path_factory.mktemp("prepared")),
        visits="auto",
        events_without_visit="group_by_day",
        visit_gap_hours=24.0,
        codes_include=("*",),
        codes_exclude=("MEDS_BIRTH", "OBSERVATION//*"),
        unique_codes_in_visit=True,
        min_patients=5,
        value_bins=10,
        row_length=256,
        use_sep=True,
    )


@pytest.fixture(scope="session")
def bundled(bundled_config) -> Prepared:
    """The bundled patients, prepared."""
    return prepare(bundled_config)


@pytest.fixture(scope="session")
def bundled_train(bundled) -> dataset.Patients:
    """The train split of the bundled patients."""
    return dataset.read(bundled.folder, "train")


@pytest.fixture
def meds(tmp_path) -> handmade.MedsFolder:
    """An empty data set."""
    return handmade.MedsFolder(tmp_path)


@pytest.fixture
def cohort(meds) -> handmade.MedsFolder:
    """A valid data set of ten patients."""
    return handmade.write_cohort(meds)


@pytest.fixture
def messages():
    """The messages that the library logs during a test."""
    with tiny.collect_messages() as lines:
        yield lines


@pytest.fixture
def no_messages(messages):
    """Fails a test during which the library logs anything."""
    yield
    assert not messages


@pytest.fixture
def strict_jax():
    """Refuses silent broadcasting between ranks and random keys used twice."""
    with tiny.strict_jax():
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """For small models, which take longer to compile than to run; what they compute is the same."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
