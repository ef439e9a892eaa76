"""Messages of the library: printed, but left to the root logger where the user shows INFO."""

import io
import logging

import pytest
from tqdm import tqdm

from behrt_jax.data.prepare import logger


@pytest.fixture
def root(monkeypatch):
    """A root logger as Orbax leaves it: its import gives it a handler, at level WARNING."""
    level = logging.root.level
    monkeypatch.setattr(logging.root, "handlers", [])
    logging.root.setLevel(logging.WARNING)
    logging.basicConfig()
    yield logging.root
    logging.root.setLevel(level)


def speak():
    logger.info("reading DIR")
    logger.warning("no codes")


@pytest.mark.usefixtures("root")
def test_messages_are_printed_without_any_configuration(capsys):
    speak()
    assert capsys.readouterr() == ("reading DIR\nwarning: no codes\n", "")


@pytest.mark.usefixtures("root")
def test_a_level_silences(capsys):
    logging.getLogger("behrt_jax").setLevel(logging.WARNING)
    speak()
    logging.getLogger("behrt_jax").setLevel(logging.INFO)
    assert capsys.readouterr() == ("warning: no codes\n", "")


def test_a_root_logger_that_shows_info_has_them_alone(root, capsys):
    stream = io.StringIO()
    logging.basicConfig(level="INFO", format="%(name)s|%(levelname)s|%(message)s", stream=stream, force=True)
    speak()
    assert capsys.readouterr() == ("", "")
    assert stream.getvalue() == "behrt_jax.data.prepare|INFO|reading DIR\nbehrt_jax.data.prepare|WARNING|no codes\n"


@pytest.mark.usefixtures("root")
def test_a_progress_bar_stays_below_the_messages(capsys):
    with tqdm(total=1, desc="training"):
        speak()
    out, err = capsys.readouterr()
    assert out == "reading DIR\nwarning: no codes\n"
    drawn = [part.strip() for part in err.replace("\n", "\r").split("\r")]
    assert all(part == "" or part.startswith("training: ") for part in drawn) and drawn[-2].startswith("training: ")
