"""Building blocks of a report; templates/report.html renders each kind."""

import base64
import io
from typing import Any, NamedTuple

from cycler import cycler
from matplotlib import rc_context
from matplotlib.figure import Figure as Drawing

from behrt_jax.plots.classification import COLORS

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "report",  # so that the same numbers give the same file bytes
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
}


class Table(NamedTuple):
    """A table of text; the first column names the rows."""

    caption: str
    header: list[str]
    rows: list[list[str]]
    note: str = ""
    kind = "table"


class Figure(NamedTuple):
    """An image as a data URI, with a summary in words and a table of its numbers."""

    source: str
    caption: str
    summary: str
    table: Table
    kind = "figure"


class Text(NamedTuple):
    """A paragraph."""

    text: str
    kind = "text"


class Missing(NamedTuple):
    """A note on missing content, with the command that makes it."""

    text: str
    command: str = ""
    kind = "missing"


class Section(NamedTuple):
    """A section of the page: its anchor, its title, and its parts."""

    anchor: str
    title: str
    intro: str
    parts: list


def draw(caption: str, summary: str, table: Table, paint, size: tuple[float, float] = (4.6, 3.3)) -> Figure:
    """Draws a figure as SVG; `paint` draws on the axes."""
    with rc_context(STYLE):
        drawing, stream = Drawing(figsize=size, layout="constrained"), io.BytesIO()
        paint(drawing.subplots())
        drawing.savefig(stream, format="svg", metadata={"Date": None})
    text = base64.b64encode(stream.getvalue()).decode()
    return Figure(f"data:image/svg+xml;base64,{text}", caption, summary, table)
