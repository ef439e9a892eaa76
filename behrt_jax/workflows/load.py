"""Loading: a trained model from its workdir, in one call."""

from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.models.classification import BEHRTForSequenceClassification
from behrt_jax.models.pretraining import BEHRTForPretraining
from behrt_jax.training import recipe
from behrt_jax.training import workdir as workdirs


class Loaded(NamedTuple):
    """The result of `load`: `config, vocabulary, model, params`."""

    config: ConfigDict
    vocabulary: Vocabulary
    model: BEHRTForPretraining | BEHRTForSequenceClassification
    params: Any


def load(workdir: str | Path) -> Loaded:
    """Loads a model from its workdir, with the parameters of lowest tuning loss.

    Args:
      workdir: the workdir of `experiments.pretrain` or `experiments.finetune`.

    Returns:
      `(config, vocabulary, model, params)`. `config` is the recipe with what the data added to it, such as
      `config.model.vocab_size`; it is locked. `model.apply(params, codes, ages, visit_ids, attention_mask)` returns the
      logits of masked codes if the model was trained on them, `method="predict_next_visits"` those of next visits; for
      a fine-tuned model, the logits of its outcomes (see `objectives.classification` and `objectives.survival`). Pass
      `time_deltas=` (days since the previous visit) too if `config.model.time_bins` is not 0, and `values=` if
      `config.model.value_encoding` is `film`.

    Raises:
      ValueError: the workdir lacks a file, or holds no readable checkpoint.
    """
    run = workdirs.load(workdir)
    config = ConfigDict(recipe.to_config(run.recipe, run.facts)).lock()
    return Loaded(config, run.vocabulary, run.model, run.params)
