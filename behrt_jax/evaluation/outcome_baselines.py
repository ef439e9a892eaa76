"""Outcome baselines: their predictions for held-out patients, one of them from a pre-trained model's embeddings."""

import logging
from pathlib import Path

import numpy as np

from behrt_jax.baselines import outcomes
from behrt_jax.data import events
from behrt_jax.embeddings.patients import embed
from behrt_jax.finetuning import predict, setup
from behrt_jax.finetuning.labeled_histories import LabeledHistories
from behrt_jax.finetuning.predict import ClassPredictions, Predictions, SurvivalPredictions, targets_of
from behrt_jax.metrics import classification
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.training import workdir
from behrt_jax.training.recipe import FinetuningRecipe

logger = logging.getLogger(__name__)


def fit_baselines(
    recipe: FinetuningRecipe, splits: dict[str, LabeledHistories], tokens
) -> dict[str, tuple[Predictions, dict]]:
    """Fits every baseline; returns its predictions for held-out patients, and its threshold, chosen on tuning."""
    parts = {name: (part.histories, part.labels.prediction_times) for name, part in splits.items()}
    train, tuning, held_out = (parts[name] for name in events.SPLITS)
    embeddings = embed_splits(recipe, splits, tokens)

    if isinstance(recipe.outcome, SurvivalConfig):
        follow_up = {name: (part.labels.days, part.labels.events) for name, part in splits.items()}
        train_data = outcomes.Followed(*train, *follow_up["train"], embeddings["train"])
        tuning_data = outcomes.Followed(*tuning, *follow_up["tuning"], embeddings["tuning"])
        values = {}
        for name, forecast in outcomes.fit_survival(train_data, tuning_data, tokens).items():
            scores = forecast(*held_out, np.array([1.0]), embeddings["held_out"]).risks

            def risks(days, forecast=forecast):
                return forecast(*held_out, days, embeddings["held_out"]).incidence

            values[name] = SurvivalPredictions(scores, risks), {}
        return values
    classes = {name: targets_of(part.labels) for name, part in splits.items()}
    is_binary = recipe.outcome.kind == "binary"
    numbers = {name: values.astype(int) if is_binary else values for name, values in classes.items()}
    train_data = outcomes.Classified(*train, numbers["train"], embeddings["train"])
    tuning_data = outcomes.Classified(*tuning, numbers["tuning"], embeddings["tuning"])
    values = {}
    for name, classify in outcomes.fit_classification(train_data, tuning_data, tokens).items():
        scores = classify(*tuning, embeddings["tuning"]), classify(*held_out, embeddings["held_out"])
        tuning_scores, held_out_scores = (each[:, 1] if is_binary else each for each in scores)
        fitted = {}
        if recipe.outcome.kind != "multi_class":
            fitted["threshold"] = classification.best_threshold(tuning_scores, classes["tuning"]).tolist()
        values[name] = ClassPredictions(held_out_scores), fitted
    return values


def predict_without_encoder(recipe: FinetuningRecipe, splits: dict[str, LabeledHistories]) -> tuple[Predictions, dict]:
    """Predicts for held-out patients from the code regression of `head.features` alone, without an encoder.

    The initial head turns the regression's output, its input, into logits, which are processed like a model's. The
    difference to a run with both therefore shows what the encoder adds.
    """
    kernel, bias = setup.init_head(recipe.outcome, splits["train"])
    logits = {name: part.covariates @ kernel + bias for name, part in splits.items()}
    fitted = predict.fit_afterwards(recipe, logits, {name: part.labels for name, part in splits.items()})
    return predict.predict(recipe.outcome, logits["held_out"], fitted), fitted


def embed_splits(recipe: FinetuningRecipe, splits: dict[str, LabeledHistories], tokens) -> dict[str, np.ndarray | None]:
    """Embeds each split with the run that fine-tuning started from: (M, D), or None if there is no such run.

    The encoder is used as it was before fine-tuning, because the fine-tuned one has seen the outcomes of train.
    """
    no_embeddings = dict.fromkeys(splits)
    if not recipe.pretrained:
        return no_embeddings
    if not (Path(recipe.pretrained) / workdir.CONFIG_FILE).exists():
        logger.info(f"fitting baselines: without embeddings, as {recipe.pretrained} is not there any more")
        return no_embeddings
    run = workdir.load(recipe.pretrained)
    if len(run.vocabulary) != len(tokens):
        logger.info("fitting baselines: without embeddings, as codes were added to the vocabulary")
        return no_embeddings
    logger.info("fitting baselines: embedding histories with the pre-trained model")
    arguments, size = (run.recipe.data, run.model, run.params), run.recipe.evaluation.batch_size
    return {name: embed(*arguments, part.model_inputs, size)["mean"] for name, part in splits.items()}
