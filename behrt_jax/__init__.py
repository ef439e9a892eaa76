"""BEHRT in JAX and Flax: pre-train an encoder on the visits and codes of patients.

`pretrain(config, workdir)` trains a recipe such as `behrt_jax.recipes.small.get_config()`, `load(workdir)` gives
`(config, vocabulary, model, params)`; `finetune`, `evaluate`, `predict`, `embed`, `describe_data` and `write_report`
do what the commands of these names do. They log what they do to the logger `behrt_jax`, which prints it unless the root
logger is configured to show INFO; `logging.getLogger("behrt_jax").setLevel("WARNING")` leaves warnings alone.
"""

import importlib
import logging
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from tqdm import tqdm

from behrt_jax.models.behrt import BEHRT, count_parameters, encode
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.embeddings import (
    AgeEmbedding,
    BEHRTEmbedding,
    PositionalEmbedding,
    SinusoidalPositionalEncoding,
    TimeEmbedding,
    VisitEmbedding,
)
from behrt_jax.models.pretraining import BEHRTForMLM, BEHRTForNextVisitPrediction

if TYPE_CHECKING:
    from behrt_jax.interpret import attribution, counterfactuals
    from behrt_jax.workflows.describe import describe_data
    from behrt_jax.workflows.embed import embed
    from behrt_jax.workflows.evaluate import evaluate
    from behrt_jax.workflows.finetune import finetune
    from behrt_jax.workflows.load import load
    from behrt_jax.workflows.predict import predict
    from behrt_jax.workflows.pretrain import pretrain
    from behrt_jax.workflows.report import write_report

__all__ = [
    "AgeEmbedding",
    "BEHRT",
    "BEHRTConfig",
    "BEHRTEmbedding",
    "BEHRTForMLM",
    "BEHRTForNextVisitPrediction",
    "BEHRTForSequenceClassification",
    "PositionalEmbedding",
    "SinusoidalPositionalEncoding",
    "TimeEmbedding",
    "VisitEmbedding",
    "attribution",
    "count_parameters",
    "counterfactuals",
    "describe_data",
    "embed",
    "encode",
    "evaluate",
    "finetune",
    "load",
    "predict",
    "pretrain",
    "write_report",
]

try:
    __version__ = version("behrt_jax")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


class _Printer(logging.Handler):
    """Prints messages to stdout, above progress bars; leaves them to the root logger if that shows INFO.

    Its level decides, not its handlers: absl, which Orbax logs with, adds a handler to it unasked.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Marks warnings."""
        return "warning: " * (record.levelno >= logging.WARNING) + super().format(record)

    def emit(self, record: logging.LogRecord) -> None:
        """Prints or forwards one message."""
        if logging.root.handlers and logging.root.isEnabledFor(logging.INFO):
            logging.root.handle(record)
        else:
            tqdm.write(self.format(record))


_logger = logging.getLogger(__name__)
if not _logger.handlers:
    _logger.addHandler(_Printer())
    _logger.setLevel(_logger.level or logging.INFO)
    _logger.propagate = False

_WORKFLOWS = {name: name for name in ("embed", "evaluate", "finetune", "load", "predict", "pretrain")}
_WORKFLOWS |= {"describe_data": "describe", "write_report": "report"}


def __getattr__(name: str):
    """Imports a workflow or a module of `interpret` at first use: each needs more libraries than a model does."""
    if name in ("attribution", "counterfactuals"):
        return importlib.import_module(f"behrt_jax.interpret.{name}")
    if name not in _WORKFLOWS:
        raise AttributeError(f"module 'behrt_jax' has no attribute '{name}'")
    return getattr(importlib.import_module(f"behrt_jax.workflows.{_WORKFLOWS[name]}"), name)
