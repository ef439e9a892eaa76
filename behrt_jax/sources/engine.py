"""Runs MEDS-Extract: its stages in this process, or by a launcher of Hydra in several."""

import contextlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

LAUNCHERS = {"joblib": "hydra-joblib-launcher", "submitit_slurm": "hydra-submitit-launcher"}  # and their packages
INSTALL = "pip install -r requirements-sources.txt"
NO_SPLITS = "ensure all splits have at least 1 subject"  # in MEDS-Extract's error
STREAMED = "split_and_shard_subjects"  # reads the patient of every row; without Polars' streaming, all at once


class Workers(NamedTuple):
    """How stages run: in this process if `number` is 1, else as that many jobs of a Hydra `launcher`."""

    number: int = 1
    launcher: str = "joblib"


def load_spec(file: Path) -> Any:
    """Loads a spec of MEDS-Extract (`MessyConfig`).

    Raises:
      ValueError: MEDS-Extract is not installed, or the file is missing or no valid spec.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in a package that MEDS-Extract brings
            from MEDS_extract.config import MessyConfig
    except ImportError as error:
        raise ValueError(f"Conversion needs MEDS-Extract ({error}); install it by: {INSTALL}") from error
    if not file.is_file():
        raise ValueError(f"{file}: no such spec; expected a YAML file such as configs/sources/synthea.yaml")
    try:
        with quiet():
            spec = MessyConfig.load(file.resolve())
            _ = spec.event_tables, spec.dataset_name, spec.raw_version_for()
    except Exception as error:  # of OmegaConf, of YAML and of the grammar, which share no class
        raise ValueError(f"{file}: not a valid spec: {' '.join(str(error).split())}") from error
    return spec


def check_launcher(workers: Workers) -> None:
    """Raises a ValueError if several jobs are asked for and the package of their launcher is not installed."""
    package = LAUNCHERS[workers.launcher]
    if workers.number > 1 and importlib.util.find_spec(f"hydra_plugins.{package.replace('-', '_')}") is None:
        raise ValueError(f"--launcher={workers.launcher}: not installed; install it by: pip install {package}")


def find_mimic_spec() -> Path:
    """Returns the spec of the package MIMIC-IV-MEDS; raises a ValueError if the package is not installed."""
    package = importlib.util.find_spec("MIMIC_IV_MEDS")
    if package is None or package.origin is None:
        raise ValueError(f"Conversion of MIMIC-IV needs the spec of MIMIC-IV-MEDS; install it by: {INSTALL}")
    return Path(package.origin).parent / "event_configs.yaml"


def run(spec: Any, tables: Path, work: Path, workers: Workers, progress: Callable[[list], Iterable]) -> None:
    """Runs the stages that are not finished in a work folder; `work/data` and `work/metadata` are the data set.

    Args:
      spec: what `load_spec` returns.
      tables: the folder of the tables that it names.
      work: what the stages write; a stage that finished there before is not run again.
      workers: the number of jobs and their launcher.
      progress: wraps the list of stages to run, to show progress.

    Raises:
      ValueError: a stage fails.
    """
    from omegaconf import OmegaConf

    logs = work / ".logs"
    logs.mkdir(parents=True, exist_ok=True)
    config = spec.pipeline_config(input_dir=tables.resolve(), output_dir=work.resolve())
    stages = {}
    for stage in config["stages"]:
        stages |= dict(stage) if isinstance(stage, dict) else {stage: {}}
    if (tables / "metadata" / "codes.parquet").exists():  # what a preparation knows about codes
        stages["extract_code_metadata"]["metadata_input_dir"] = str(tables.resolve() / "metadata")
    config["stages"] = [{stage: options} if options else stage for stage, options in stages.items()]
    pipeline = work / "pipeline.yaml"
    OmegaConf.save(OmegaConf.create({**config, "polling_time": 1}), pipeline)
    for stage in progress([stage for stage in stages if not (logs / f"{stage}.done").exists()]):
        if workers.number == 1:
            _run_here(pipeline, stage)
        else:
            _run_jobs(pipeline, stage, workers, logs / f"{stage}.log")
        (logs / f"{stage}.done").touch()


def _run_here(pipeline: Path, stage: str) -> None:
    """Runs a stage as `python -m MEDS_transforms` does, without the seconds that a new process takes to start."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from MEDS_transforms import __main__, __package_name__, __version__
    from MEDS_transforms.configs import PipelineConfig
    from omegaconf import OmegaConf

    step = PipelineConfig.from_arg(str(pipeline)).register_for(stage)
    ConfigStore.instance().store(name="_main", node=OmegaConf.load(str(__main__.MAIN_CFG_PATH)))
    names = {"get_package_version": __version__, "get_package_name": __package_name__, "stage_name": stage}
    for name, value in {**names, "stage_docstring": ""}.items():
        OmegaConf.register_new_resolver(name, lambda value=value: value, replace=True)
    try:
        affinity = "streaming" if stage == STREAMED else None
        with quiet(), hydra.initialize(version_base=None), pl.Config(set_engine_affinity=affinity):
            step.main(hydra.compose("_main"))
    except Exception as error:
        if NO_SPLITS in str(error):
            raise ValueError(
                "Found fewer patients with events than splits; each of train, tuning and held_out needs one: convert "
                "more patients, or name fewer splits in split_fracs of a copy of the spec"
            ) from error
        raise ValueError(f"MEDS-Extract failed in {stage}: {without_values(str(error))}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of MEDS-Extract: what it drops is in the counts of a conversion."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _run_jobs(pipeline: Path, stage: str, workers: Workers, log: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "MEDS_transforms", str(pipeline), stage, "--multirun"]
    command += [f"worker=range(0,{workers.number})", f"hydra/launcher={workers.launcher}"]
    environment = {**os.environ, **({"POLARS_ENGINE_AFFINITY": "streaming"} if stage == STREAMED else {})}
    with log.open("w") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, check=False, env=environment)
    if done.returncode:
        raise ValueError(f"MEDS-Extract failed in {stage} with {workers.launcher}; its output is in {log}")


def without_values(message: str) -> str:
    """Returns the first line of an error of polars or MEDS-Extract without the values that polars quotes."""
    message = re.sub(r"(?s)could not parse `.*` as dtype", "could not parse a value as dtype", message)
    message = re.sub(r"(?s)values: \[.*", "values", message)
    return next(iter(message.splitlines()), "").strip()


def read_shards(work: Path) -> dict[str, list[int]]:
    """Returns the subjects of each shard, such as `train/0`."""
    return json.loads((work / "metadata" / ".shards.json").read_text())
