"""What the baselines of outcomes say of held-out patients."""

import numpy as np
from ml_collections import ConfigDict

from behrt_jax import baselines_outcome, classification_metrics
from behrt_jax.data import events
from experiments.labelled import Labelled
from experiments.predictions import ClassPredictions, Predictions, SurvivalPredictions, targets_of


def fit_baselines(config: ConfigDict, splits: dict[str, Labelled], tokens, say) -> dict[str, tuple[Predictions, dict]]:
    """Fits every baseline; returns what each says of held-out patients, and its threshold, chosen on tuning."""
    parts = {name: (part.histories, part.labels.prediction_times) for name, part in splits.items()}
    train, tuning, held_out = (parts[name] for name in events.SPLITS)

    def progress(line: str) -> None:
        say(f"fitting baselines: {line}")

    if "survival" in config:
        followed = {name: (part.labels.days, part.labels.events) for name, part in splits.items()}
        fitted_to = baselines_outcome.Followed(*train, *followed["train"])
        chosen_on = baselines_outcome.Followed(*tuning, *followed["tuning"])
        found = {}
        for name, forecast in baselines_outcome.fit_survival(fitted_to, chosen_on, tokens, progress).items():
            scores = forecast(*held_out, np.array([1.0])).risks

            def risks(days, forecast=forecast):
                return forecast(*held_out, days).incidence

            found[name] = SurvivalPredictions(scores, risks), {}
        return found
    classes = {name: targets_of(part.labels) for name, part in splits.items()}
    is_binary = config.classification.kind == "binary"
    numbers = {name: found.astype(int) if is_binary else found for name, found in classes.items()}
    fitted_to = baselines_outcome.Classified(*train, numbers["train"])
    chosen_on = baselines_outcome.Classified(*tuning, numbers["tuning"])
    found = {}
    for name, classify in baselines_outcome.fit_classification(fitted_to, chosen_on, tokens, progress).items():
        tuned, said = classify(*tuning), classify(*held_out)
        tuned, said = (each[:, 1] if is_binary else each for each in (tuned, said))
        fitted = {}
        if config.classification.kind != "multi_class":
            fitted["threshold"] = classification_metrics.best_threshold(tuned, classes["tuning"]).tolist()
        found[name] = ClassPredictions(said), fitted
    return found
