"""Baselines for outcomes after a prediction time: regressions and gradient boosting, tuned on the tuning split.

They read tables of features of histories at prediction times (see `data.histories`) and predict classes or time to
event. Each baseline reads the whole history, however long; BEHRT reads the part of it that fits in a row.
"""

import functools
import logging
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.special
import xgboost
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from behrt_jax.data.dataset import Patients
from behrt_jax.objectives import survival
from behrt_jax.objectives.survival import SurvivalConfig
from behrt_jax.regression import cox
from behrt_jax.regression.code_regression import MAX_ROWS, NET_PENALTIES, sample
from behrt_jax.regression.outcome_features import Inputs, fit_columns, fit_scaler

logger = logging.getLogger(__name__)

# All settings tried on tuning, the most regularised first. The ranges were set by hand on all five folds of death from
# landmarks of the bundled patients, so the scores there are slightly optimistic. Left out, as they were no better there
# (single trials, no figures kept): boosted Poisson rates, adding the newest values of 77 measurements to the codes, and
# training on an index date every two years.
STRENGTHS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of logistic regression
RIDGES = (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 1e-1, 1e-2)  # of Cox on age and sex; the weakest is almost none
NET_RATIOS = (0.1, 0.5)  # L1 shares of the elastic net; penalties as in code_regression
BOOSTING = ((0.02, 3),)  # learning rates and depths of gradient boosting
TREES, CHECK_EVERY = 500, 20
TREE_SETTINGS = {"colsample_bynode": 0.1, "subsample": 0.5, "tree_method": "hist", "seed": 0}


class Classified(NamedTuple):
    """N histories at prediction times, with their classes or labels.

    Attributes:
      patients: N rows, as `histories.histories_at` returns them, without prediction tokens.
      times: (N,) datetime64, the prediction times.
      classes: (N,) int from 0, or (N, T) bool for T labels at once.
      embeddings: (N, D) of these histories, from a model that was not trained on outcomes, if there is one.
    """

    patients: Patients
    times: np.ndarray
    classes: np.ndarray
    embeddings: np.ndarray | None = None


class Followed(NamedTuple):
    """N histories at prediction times, with their follow-up.

    Attributes:
      patients, times: as in `Classified`.
      days: (N,) from the prediction time to the event or the end of follow-up, above 0.
      events: (N,) int; 0 for censored, otherwise the cause, from 1 to K.
      embeddings: as in `Classified`.
    """

    patients: Patients
    times: np.ndarray
    days: np.ndarray
    events: np.ndarray
    embeddings: np.ndarray | None = None


class Candidate(NamedTuple):
    """A fit with one of the settings, its predictions on tuning, and whether the setting is at the edge of the grid."""

    setting: str
    tuned: np.ndarray
    predict: Callable[[Inputs], np.ndarray]
    at_edge: bool = False


class Forecast(NamedTuple):
    """Predictions of time to event: (N, K) log hazard ratios and (N, K, H) cumulative incidence by cause and horizon.

    The cumulative incidence (Aalen and Johansen) accounts for the other causes; with a single one it is 1 - S(t).
    """

    risks: np.ndarray
    incidence: np.ndarray


# Arguments: patients, times, (horizons,) and embeddings, which only `BOOSTED` reads.
Classifier = Callable[..., np.ndarray]
Forecaster = Callable[..., Forecast]
BOOSTED = "gradient boosting on codes and embeddings"


def fit_classification(train: Classified, tuning: Classified, tokens: tuple[str, ...]) -> dict[str, Classifier]:
    """Fits the classification baselines and selects their settings by cross-entropy on tuning.

    Args:
      train: the data to fit; a random sample of `MAX_ROWS` rows if there are more.
      tuning: the data that selects the settings.
      tokens: of the vocabulary, by id.

    Returns:
      By name, a function from histories, their prediction times, and embeddings if there are any, to (N, K)
      probabilities of the classes, or (N, T) of the labels.

    Raises:
      ValueError: all of train has one class, or train or tuning is empty.
    """
    if train.classes.ndim == 2:
        classifiers = []
        for label in range(train.classes.shape[1]):
            logger.info(f"fitting baselines: label {label + 1} of {train.classes.shape[1]}")
            splits = [split._replace(classes=split.classes[:, label].astype(int)) for split in (train, tuning)]
            classifiers.append(fit_classification(splits[0], splits[1], tokens))
        return {
            name: lambda *known, name=name: np.stack([models[name](*known)[:, 1] for models in classifiers], axis=1)
            for name in classifiers[0]
        }
    _check(train, tuning)
    classes = np.unique(train.classes)
    if len(classes) < 2:
        raise ValueError(f"train: all {len(train.classes):,} rows have one class; expected rows of two or more")
    encode, rows, table, checks = _encode(train, tuning, tokens)
    targets, size = train.classes[rows], 1 + max(train.classes.max(), tuning.classes.max())
    families = {
        "logistic regression on age and sex": _logistic(table, targets, checks, size, operator.attrgetter("basic")),
        "logistic regression on codes": _logistic(table, targets, checks, size, Inputs.joined),
        "gradient boosting": _boosted_classes(table, targets, checks, size),
    }
    families = _leave_out(families, table)
    if train.embeddings is not None and tuning.embeddings is not None:
        wide = table.widened(train.embeddings[rows]), targets, checks.widened(tuning.embeddings)
        families[BOOSTED] = _boosted_classes(*wide, size)
    loss = _cross_entropy(tuning.classes)
    choices = {name: choose(name, candidates, loss) for name, candidates in families.items()}

    def classify(name, patients, times, embeddings=None):
        return choices[name].predict(_inputs(encode, name, patients, times, embeddings))

    return {name: functools.partial(classify, name) for name in choices}


def fit_survival(train: Followed, tuning: Followed, tokens: tuple[str, ...]) -> dict[str, Forecaster]:
    """Fits the time-to-event baselines and selects their settings by the partial likelihood on tuning.

    Each cause is fitted separately, with follow-up censored at the others (cause-specific hazards). The baseline hazard
    is Breslow's estimate on train. The arguments are as in `fit_classification`.

    Returns:
      By name, a function from histories, their prediction times, (H,) horizons in days, and embeddings if there are
      any, to a `Forecast`.

    Raises:
      ValueError: train lacks an event of a cause, or train or tuning is empty.
    """
    _check(train, tuning)
    causes = range(1, 1 + max(int(train.events.max()), 1))
    missing_causes = [cause for cause in causes if not (train.events == cause).any()]
    if missing_causes:
        raise ValueError(
            f"train: none of {len(train.events):,} rows has an event of cause {missing_causes[0]}; expected some of "
            "each cause from 1 on"
        )
    encode, rows, table, checks = _encode(train, tuning, tokens)
    days, models = train.days[rows], {}
    for cause in causes:
        happened, tuning_happened = train.events[rows] == cause, tuning.events == cause
        families = {
            "Cox on age and sex": _cox(table, days, happened, checks),
            "Cox on codes": _elastic_net(table, days, happened, checks),
            "gradient boosting": _boosted_survival(table, days, happened, checks),
        }
        families = _leave_out(families, table)
        tables = dict.fromkeys(families, table)
        if train.embeddings is not None and tuning.embeddings is not None:
            tables[BOOSTED] = table.widened(train.embeddings[rows])
            wide = tables[BOOSTED], days, happened, checks.widened(tuning.embeddings)
            families[BOOSTED] = _boosted_survival(*wide)
        for name, candidates in families.items():
            label = name if len(causes) == 1 else f"{name}, cause {cause}"
            best = choose(label, candidates, _partial_loss(tuning.days, tuning_happened))
            models.setdefault(name, []).append((best.predict, best.predict(tables[name])))
    config = SurvivalConfig("cox", 1, (), len(causes))
    baselines = {
        name: survival.breslow(np.stack([log_risks for _, log_risks in fits], axis=1), days, train.events[rows])
        for name, fits in models.items()
    }

    def forecast(name, patients, times, horizons, embeddings=None):
        inputs = _inputs(encode, name, patients, times, embeddings)
        log_risks = np.stack([predict(inputs) for predict, _ in models[name]], axis=1)
        return Forecast(log_risks, survival.risks(log_risks, config, horizons, baselines[name]))

    return {name: functools.partial(forecast, name) for name in models}


def choose(name: str, candidates: Iterable[Candidate], loss: Callable[[np.ndarray], float]) -> Candidate:
    """Returns the first candidate with the lowest loss on tuning; reports it, and if it is at the edge of the grid."""
    losses = ((candidate, loss(candidate.tuned)) for candidate in candidates)
    best, lowest = min(losses, key=lambda pair: pair[1])
    edge = ", at the edge of the settings tried" if best.at_edge else ""
    logger.info(f"fitting baselines: {name}: {best.setting}{edge}, tuning loss {lowest:.4f}")
    return best


def fit_inputs(
    train: tuple[Inputs, np.ndarray], tuning: tuple[Inputs, np.ndarray], subject_ids: np.ndarray, boosted: bool = False
) -> Callable[[Inputs], np.ndarray]:
    """Fits ridge logistic regression or gradient boosting to a table of inputs; selects its settings on tuning.

    Args:
      train: N rows of inputs, which are scaled by `outcome_features.fit_columns`, and their (N,) bool outcomes.
      tuning: likewise.
      subject_ids: (N,) of train.
      boosted: whether to fit gradient boosting.

    Returns:
      A function from inputs to (M,) probabilities.
    """
    scaler, classes = fit_columns(train[0], subject_ids), tuning[1].astype(int)
    data = scaler.scale(train[0]), train[1].astype(int), scaler.scale(tuning[0]), 2
    candidates = _boosted_classes(*data) if boosted else _logistic(*data, Inputs.joined)
    name = f"{'boosting' if boosted else 'ridge'}, {data[0].basic.shape[1] + data[0].codes.shape[1]:,} features"
    best = choose(name, candidates, _cross_entropy(classes))
    return lambda inputs: best.predict(scaler.scale(inputs))[:, 1]


def _cross_entropy(classes: np.ndarray) -> Callable[[np.ndarray], float]:
    """Returns the mean cross-entropy of (N,) classes as a function of (N, K) probabilities."""
    return lambda tuned: float(-np.log(np.maximum(tuned[np.arange(len(tuned)), classes], 1e-7)).mean())


def _partial_loss(days: np.ndarray, happened: np.ndarray) -> Callable[[np.ndarray], float]:
    """Returns the negative log partial likelihood per event as a function of (N,) log risks.

    Unlike a C-index, it depends on the scale of the log risks, so it distinguishes a regression from a shrunken one.
    """
    likelihood, count = cox.PartialLikelihood(days, happened), max(int(happened.sum()), 1)
    return lambda log_risks: likelihood(log_risks)[0] / count


def _leave_out(families: dict[str, Iterator], table: Inputs) -> dict[str, Iterator]:
    """Returns the families that have input columns, and reports the others."""
    numbers = {name: table.basic.shape[1] for name in families}
    numbers |= {name: number + table.codes.shape[1] for name, number in numbers.items() if "age and sex" not in name}
    for name, number in numbers.items():
        if not number:
            reason = "train has nothing for it to read (no birth, no sex, or no common code)"
            logger.info(f"fitting baselines: {name}: left out, as {reason}")
    return {name: candidates for name, candidates in families.items() if numbers[name]}


def _inputs(encode: Callable, name: str, patients: Patients, times: np.ndarray, embeddings) -> Inputs:
    """Returns the inputs of a baseline, with embeddings for `BOOSTED`."""
    inputs = encode(patients, times)
    return inputs if name != BOOSTED or embeddings is None else inputs.widened(embeddings)


def _logistic(table: Inputs, classes: np.ndarray, checks: Inputs, size: int, columns: Callable) -> Iterator[Candidate]:
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000)
        with warnings.catch_warnings():
            # A regression that has not converged is a valid candidate: the tuning loss decides.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(columns(table), classes)

        def predict(inputs: Inputs, model=model) -> np.ndarray:
            return _spread(model.predict_proba(columns(inputs)), model.classes_, size)

        yield Candidate(f"C={strength:g}", predict(checks), predict, strength in (STRENGTHS[0], STRENGTHS[-1]))


def _cox(table: Inputs, days: np.ndarray, happened: np.ndarray, checks: Inputs) -> Iterator[Candidate]:
    for ridge in RIDGES:
        weights = cox.fit_ridge(table.basic, days, happened, ridge)

        def predict(inputs: Inputs, weights=weights) -> np.ndarray:
            return inputs.basic @ weights

        yield Candidate(f"ridge {ridge:g}", predict(checks), predict, ridge == RIDGES[0])


def _elastic_net(table: Inputs, days: np.ndarray, happened: np.ndarray, checks: Inputs) -> Iterator[Candidate]:
    dense, tuning_inputs = table.joined().toarray(), checks.joined()
    for ratio in NET_RATIOS:
        for place, (penalty, weights) in enumerate(cox.fit_path(dense, days, happened, ratio, NET_PENALTIES), start=1):

            def predict(inputs: Inputs, weights=weights) -> np.ndarray:
                return inputs.joined() @ weights

            # The largest penalty leaves almost no weights, so only the smallest is an edge of the grid.
            setting = f"penalty {penalty:.3g}, L1 share {ratio:g}"
            yield Candidate(setting, tuning_inputs @ weights, predict, place == len(NET_PENALTIES))


def _boosted_classes(table: Inputs, classes: np.ndarray, checks: Inputs, size: int) -> Iterator[Candidate]:
    class_ids, labels = np.unique(classes, return_inverse=True)
    multiclass = {"objective": "multi:softprob", "num_class": len(class_ids)}
    settings = multiclass if len(class_ids) > 2 else {"objective": "binary:logistic"}

    def finish(margins: np.ndarray) -> np.ndarray:
        margins = margins if margins.ndim == 2 else np.stack([np.zeros_like(margins), margins], axis=1)
        return _spread(scipy.special.softmax(margins, axis=1), class_ids, size)

    yield from _boosted(table, labels, checks, settings, finish)


def _boosted_survival(table: Inputs, days: np.ndarray, happened: np.ndarray, checks: Inputs) -> Iterator[Candidate]:
    yield from _boosted(table, np.where(happened, days, -days), checks, {"objective": "survival:cox"})


def _boosted(
    table: Inputs, labels: np.ndarray, checks: Inputs, objective: dict, finish: Callable = lambda margins: margins
) -> Iterator[Candidate]:
    """Fits gradient boosting; each number of trees is a candidate. `finish` maps margins to predictions."""
    train, tuning = (xgboost.DMatrix(each.joined(), label) for each, label in ((table, labels), (checks, None)))
    for rate, depth in BOOSTING:
        model = xgboost.train({**TREE_SETTINGS, **objective, "eta": rate, "max_depth": depth}, train, TREES)

        def predict(inputs: Inputs | xgboost.DMatrix, trees: int, model=model) -> np.ndarray:
            matrix = xgboost.DMatrix(inputs.joined()) if isinstance(inputs, Inputs) else inputs
            return finish(model.predict(matrix, output_margin=True, iteration_range=(0, trees)).astype(np.float64))

        for trees in range(CHECK_EVERY, TREES + 1, CHECK_EVERY):
            setting = f"learning rate {rate:g}, depth {depth}, {trees} trees"
            yield Candidate(setting, predict(tuning, trees), functools.partial(predict, trees=trees), trees == TREES)


def _spread(probabilities: np.ndarray, classes: np.ndarray, size: int) -> np.ndarray:
    """Inserts columns of 0 for the classes that train lacks, (N, K)."""
    all_probabilities = np.zeros((len(probabilities), size))
    all_probabilities[:, classes] = probabilities
    return all_probabilities


def _encode(train, tuning, tokens: tuple[str, ...]) -> tuple[Callable, np.ndarray, Inputs, Inputs]:
    """Returns a function that computes inputs, a sample of the rows of train, and the inputs of it and of tuning."""
    scaler = fit_scaler(train.patients, train.times, tokens)
    encode, rows = functools.partial(scaler.encode, tokens=tokens), sample(len(train.times), MAX_ROWS)
    inputs = encode(train.patients, train.times)
    return encode, rows, Inputs(inputs.basic[rows], inputs.codes[rows]), encode(tuning.patients, tuning.times)


def _check(train: Classified | Followed, tuning: Classified | Followed) -> None:
    for name, split in (("train", train), ("tuning", tuning)):
        if not len(split.times):
            raise ValueError(f"{name}: no prediction with a history is left; check the labels of this split")
