import pytest

from tests.data import handmade


@pytest.fixture
def meds(tmp_path) -> handmade.MedsFolder:
    """An empty data set."""
    return handmade.MedsFolder(tmp_path)


@pytest.fixture
def cohort(meds) -> handmade.MedsFolder:
    """A valid data set of ten patients."""
    return handmade.write_cohort(meds)
