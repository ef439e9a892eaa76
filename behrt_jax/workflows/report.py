"""The report of a run."""

import logging
from pathlib import Path

from behrt_jax.report import maps, source

logger = logging.getLogger(__name__)


def write_report(
    workdir: str | Path,
    output: str | Path | None = None,
    *,
    data: str | None = None,
    diseases: str | Path = maps.DISEASES,
    show_patients: bool | None = None,
) -> Path:
    """Writes a self-contained HTML page about a run.

    Args:
      workdir: written by `pretrain` or `finetune`.
      output: the page to write; `report.html` in the workdir if None.
      data: a MEDS data set whose patients are shown; the run's own if None.
      diseases: file of disease groups, which colour the patients.
      show_patients: whether to show single patients; if None, only those of simulated data.

    Raises:
      ValueError: the run cannot be read, or patients may be real and are to be shown.
    """
    try:
        from behrt_jax.report.page import find_sections, render
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the report needs {error.name}, which is not installed: pip install 'behrt_jax[report]'"
        ) from error
    output = Path(output or Path(workdir) / "report.html")
    run = source.load(Path(workdir), data, show_patients)
    page = render(run, find_sections(run, Path(diseases)))
    output.parent.mkdir(parents=True, exist_ok=True)
    scratch = output.with_name(f"{output.name}.tmp")
    scratch.write_text(page, encoding="utf-8")
    scratch.replace(output)
    logger.info(f"written: {output}, {output.stat().st_size / 1e6:.1f} MB; open it in any browser")
    return output
