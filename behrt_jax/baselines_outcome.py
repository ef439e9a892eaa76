"""What models without a sequence reach on outcomes after a prediction time, fitted on train and tuned on tuning.

Regressions and gradient boosting on tables made of histories at prediction times (see `data.at_times`), as classes and
as time to event. Each baseline sees the whole history, however long; BEHRT sees what fits a row.
"""

import functools
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sksurv.ensemble import GradientBoostingSurvivalAnalysis
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.linear_model.coxph import BreslowEstimator
from sksurv.util import Surv

from behrt_jax.code_regression import MAX_ROWS, NET_PENALTIES, discordance, net_path, sample
from behrt_jax.data.dataset import Patients
from behrt_jax.outcome_features import Inputs, fit_encoder

# The budget: every setting that is tried on tuning, the most cautious first. The ranges were set by hand with an eye on
# all five folds of death from landmarks of the bundled patients, so what is reached there is a little too good. Tried
# and left out, as it measured no better there (single trials, no figures kept): boosted Poisson rates, the newest
# values of 77 measurements beside the codes, and training on an index date every two years.
STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # C of logistic regression
RIDGE = 0.1  # of Cox on age and sex, which has no setting to choose: hardly any, but sexes are collinear
NET_RATIOS = (
    0.1,
    0.5,
)  # L1 shares of the elastic net; penalties as in code_regression
BOOSTING, TREES, CHECK_EVERY = ((0.05, 2), (0.05, 4)), 200, 10  # learning rate and depth of classes
BOOSTING_SURVIVAL, TREES_SURVIVAL, CHECK_SURVIVAL = ((0.05, 3),), 400, 50  # and of time to event
TREE_FEATURES, TREE_ROWS = 0.1, 0.5  # shares that a split, and in time to event a tree, are chosen on
MAX_ROWS_BOOSTED_SURVIVAL = (
    5_000  # of train, of which a sample is taken: boosting of survival takes time of their square
)
ROWS = 512  # forecasts worked on at once


class Classified(NamedTuple):
    """Histories at prediction times, N of them, and what followed.

    Attributes:
      patients: N rows, as `at_times.histories_at` returns them, without marks.
      times: (N,) datetime64, the prediction times.
      classes: (N,) int from 0, or (N, T) bool for T labels at once.
      embeddings: (N, D) of these histories, by a model that knows no outcome, if there is one.
    """

    patients: Patients
    times: np.ndarray
    classes: np.ndarray
    embeddings: np.ndarray | None = None


class Followed(NamedTuple):
    """Histories at prediction times, N of them, and how long each was followed.

    Attributes:
      patients, times: as of `Classified`.
      days: (N,) from the prediction to the event or the end of follow-up, above 0.
      events: (N,) int; 0 where follow-up ended, else the cause, from 1 to K.
      embeddings: as of `Classified`.
    """

    patients: Patients
    times: np.ndarray
    days: np.ndarray
    events: np.ndarray
    embeddings: np.ndarray | None = None


class Candidate(NamedTuple):
    """A fit with one of the settings to choose from, and what it says of tuning."""

    setting: str
    tuned: np.ndarray
    predict: Callable[[Inputs], np.ndarray]


class Forecast(NamedTuple):
    """What is said of N predictions: (N, K) log hazard ratios and (N, K, H) chances of each cause by each horizon.

    The chances (cumulative incidence, Aalen and Johansen) take the other causes into account; of a single one they are
    1 - S(t).
    """

    risks: np.ndarray
    incidence: np.ndarray


# Of patients, times, (horizons,) and embeddings, which only `BOOSTED` reads.
Classifier = Callable[..., np.ndarray]
Forecaster = Callable[..., Forecast]
Progress = Callable[[str], None]
BOOSTED = "gradient boosting on codes and embeddings"


def fit_classification(
    train: Classified, tuning: Classified, tokens: tuple[str, ...], progress: Progress = lambda message: None
) -> dict[str, Classifier]:
    """Fits the baselines of classification, each setting of which is chosen by the cross-entropy of tuning.

    Args:
      train: of more than `MAX_ROWS` rows a random sample of so many is used.
      tuning: chooses.
      tokens: of the vocabulary, by id.
      progress: called with each baseline and what was chosen for it.

    Returns:
      By name, a function from histories, their prediction times, and embeddings if there are some, to (N, K)
      probabilities of the classes, or to (N, T) of the labels.

    Raises:
      ValueError: all of train has one class, or train or tuning is empty.
    """
    if train.classes.ndim == 2:
        labels = []
        for label in range(train.classes.shape[1]):
            progress(f"label {label + 1} of {train.classes.shape[1]}")
            own = [split._replace(classes=split.classes[:, label].astype(int)) for split in (train, tuning)]
            labels.append(fit_classification(own[0], own[1], tokens, progress))
        return {
            name: lambda *known, name=name: np.stack([fitted[name](*known)[:, 1] for fitted in labels], axis=1)
            for name in labels[0]
        }
    _check(train, tuning)
    found = np.unique(train.classes)
    if len(found) < 2:
        raise ValueError(f"train: all {len(train.classes):,} rows have one class; expected rows of two or more")
    encode = functools.partial(fit_encoder(train.patients, train.times, tokens).encode, tokens=tokens)
    rows = sample(len(train.classes), MAX_ROWS)
    table, checks = _rows(encode(train.patients, train.times), rows), encode(tuning.patients, tuning.times)
    wanted, size = train.classes[rows], 1 + max(train.classes.max(), tuning.classes.max())

    def loss(tuned: np.ndarray) -> float:
        return float(-np.log(np.maximum(tuned[np.arange(len(tuned)), tuning.classes], 1e-7)).mean())

    families = {
        "logistic regression on age and sex": _logistic(table, wanted, checks, size, _only_basic),
        "logistic regression on codes": _logistic(table, wanted, checks, size, Inputs.joined),
        "gradient boosting": _boosted_classes(table, wanted, checks, size),
    }
    if train.embeddings is not None and tuning.embeddings is not None:
        wide = table.widened(train.embeddings[rows]), wanted, checks.widened(tuning.embeddings)
        families[BOOSTED] = _boosted_classes(*wide, size)
    chosen = {name: choose(name, candidates, loss, progress) for name, candidates in families.items()}

    def classify(name, patients, times, embeddings=None):
        return chosen[name].predict(_inputs(encode, name, patients, times, embeddings))

    return {name: functools.partial(classify, name) for name in chosen}


def fit_survival(
    train: Followed, tuning: Followed, tokens: tuple[str, ...], progress: Progress = lambda message: None
) -> dict[str, Forecaster]:
    """Fits the baselines of time to event, each setting of which is chosen by Harrell's C of tuning.

    Causes are fitted one by one, with follow-up ended by the others (cause-specific hazards); the hazard that risks
    multiply is Breslow's of train.

    Args:
      train: of more than `MAX_ROWS` rows a random sample of so many is used, for boosting of
        `MAX_ROWS_BOOSTED_SURVIVAL`.
      tuning: chooses.
      tokens: of the vocabulary, by id.
      progress: called with each baseline and what was chosen for it.

    Returns:
      By name, a function from histories, their prediction times, (H,) horizons in days, and embeddings if there are
      some, to a `Forecast`.

    Raises:
      ValueError: train lacks an event of a cause, or train or tuning is empty.
    """
    _check(train, tuning)
    causes = range(1, 1 + max(int(train.events.max()), 1))
    lacking = [cause for cause in causes if not (train.events == cause).any()]
    if lacking:
        raise ValueError(
            f"train: none of {len(train.events):,} rows has an event of cause {lacking[0]}; expected some of each "
            "cause from 1 on"
        )
    encode = functools.partial(fit_encoder(train.patients, train.times, tokens).encode, tokens=tokens)
    rows = sample(len(train.days), MAX_ROWS)
    table, checks = _rows(encode(train.patients, train.times), rows), encode(tuning.patients, tuning.times)
    days, fitted = train.days[rows], {}
    for cause in causes:
        happened, later = train.events[rows] == cause, tuning.events == cause
        families = {
            "Cox on age and sex": _cox(table, Surv.from_arrays(happened, days), checks),
            "Cox on codes": _elastic_net(table, Surv.from_arrays(happened, days), checks),
            "gradient boosting": _boosted_survival(table, Surv.from_arrays(happened, days), checks),
        }
        given = {}
        if train.embeddings is not None and tuning.embeddings is not None:
            given[BOOSTED] = table.widened(train.embeddings[rows])
            wide = given[BOOSTED], Surv.from_arrays(happened, days), checks.widened(tuning.embeddings)
            families[BOOSTED] = _boosted_survival(*wide)
        for name, candidates in families.items():
            label = name if len(causes) == 1 else f"{name}, cause {cause}"
            loss = functools.partial(discordance, later, tuning.days)
            best = choose(label, candidates, loss, progress)
            hazard = BreslowEstimator().fit(best.predict(given.get(name, table)), happened, days).cum_baseline_hazard_
            fitted.setdefault(name, []).append((best.predict, hazard.x, hazard.y))

    def forecast(name, patients, times, horizons, embeddings=None):
        return _forecast(_inputs(encode, name, patients, times, embeddings), fitted[name], horizons)

    return {name: functools.partial(forecast, name) for name in fitted}


def choose(
    name: str, candidates: Iterable[Candidate], loss: Callable[[np.ndarray], float], progress: Progress
) -> Candidate:
    """Returns the candidate of lowest loss on tuning, of equal ones the first, and tells it."""
    losses = ((candidate, loss(candidate.tuned)) for candidate in candidates)
    best, lowest = min(losses, key=lambda pair: pair[1])
    progress(f"{name}: {best.setting}, tuning loss {lowest:.4f}")
    return best


def _inputs(encode: Callable, name: str, patients: Patients, times: np.ndarray, embeddings) -> Inputs:
    """Returns what a baseline reads."""
    inputs = encode(patients, times)
    return inputs if name != BOOSTED or embeddings is None else inputs.widened(embeddings)


def _only_basic(inputs: Inputs) -> np.ndarray:
    return inputs.basic


def _logistic(table: Inputs, classes: np.ndarray, checks: Inputs, size: int, columns: Callable) -> Iterator[Candidate]:
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=1000)
        with warnings.catch_warnings():
            # A regression that has not converged is a candidate like any other: tuning judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(columns(table), classes)

        def predict(inputs: Inputs, model=model) -> np.ndarray:
            return _spread(model.predict_proba(columns(inputs)), model.classes_, size)

        yield Candidate(f"C={strength:g}", predict(checks), predict)


def _boosted_classes(table: Inputs, classes: np.ndarray, checks: Inputs, size: int) -> Iterator[Candidate]:
    dense = checks.dense()
    for rate, depth in BOOSTING:
        model = HistGradientBoostingClassifier(
            learning_rate=rate,
            max_depth=depth,
            max_iter=TREES,
            max_features=TREE_FEATURES,
            early_stopping=False,
            random_state=0,
        ).fit(table.dense(), classes)

        def predict(inputs: Inputs, trees: int, model=model) -> np.ndarray:
            return _spread(_stage(model.staged_predict_proba(inputs.dense()), trees), model.classes_, size)

        for trees, tuned in _stages(model.staged_predict_proba(dense), CHECK_EVERY):
            setting = f"learning rate {rate:g}, depth {depth}, {trees} trees"
            yield Candidate(setting, _spread(tuned, model.classes_, size), functools.partial(predict, trees=trees))


def _cox(table: Inputs, outcome: np.ndarray, checks: Inputs) -> Iterator[Candidate]:
    weights = CoxPHSurvivalAnalysis(alpha=RIDGE, ties="efron").fit(table.basic, outcome).coef_

    def predict(inputs: Inputs) -> np.ndarray:
        return inputs.basic @ weights

    yield Candidate("no choice", predict(checks), predict)


def _elastic_net(table: Inputs, outcome: np.ndarray, checks: Inputs) -> Iterator[Candidate]:
    dense, given = table.joined().toarray(), checks.joined()
    for ratio in NET_RATIOS:
        for penalty, weights in net_path(dense, outcome, ratio, NET_PENALTIES):

            def predict(inputs: Inputs, weights=weights) -> np.ndarray:
                return inputs.joined() @ weights

            yield Candidate(f"penalty {penalty:.3g}, L1 share {ratio:g}", given @ weights, predict)


def _boosted_survival(table: Inputs, outcome: np.ndarray, checks: Inputs) -> Iterator[Candidate]:
    rows = sample(len(outcome), MAX_ROWS_BOOSTED_SURVIVAL)
    train, dense = _rows(table, rows).dense(), checks.dense()
    for rate, depth in BOOSTING_SURVIVAL:
        model = GradientBoostingSurvivalAnalysis(
            learning_rate=rate,
            max_depth=depth,
            n_estimators=TREES_SURVIVAL,
            max_features=TREE_FEATURES,
            subsample=TREE_ROWS,
            random_state=0,
        ).fit(train, outcome[rows])

        def predict(inputs: Inputs, trees: int, model=model) -> np.ndarray:
            return _stage(model.staged_predict(inputs.dense()), trees)

        for trees, tuned in _stages(model.staged_predict(dense), CHECK_SURVIVAL):
            setting = f"learning rate {rate:g}, depth {depth}, {trees} trees"
            yield Candidate(setting, tuned, functools.partial(predict, trees=trees))


def _stages(staged: Iterator[np.ndarray], every: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yields a stage of boosting every so many trees, and how many it has."""
    for number, found in enumerate(staged, start=1):
        if number % every == 0:
            yield number, found.copy()


def _stage(staged: Iterator[np.ndarray], trees: int) -> np.ndarray:
    return next(itertools.islice(staged, trees - 1, None))


def _spread(probabilities: np.ndarray, classes: np.ndarray, size: int) -> np.ndarray:
    """Puts the columns of the classes that train has to their places among all, (N, K)."""
    found = np.zeros((len(probabilities), size))
    found[:, classes] = probabilities
    return found


def _forecast(inputs: Inputs, models: list, horizons: np.ndarray) -> Forecast:
    """Puts the hazards of all causes together; each of `models` has a log risk, and times and values of a hazard."""
    horizons = np.asarray(horizons, float)
    risks = np.stack([predict(inputs) for predict, _, _ in models], axis=1)
    moments = np.unique(np.concatenate([when for _, when, _ in models]))
    # What each cause adds to the cumulative hazard at each moment, (K, moments).
    steps = [
        np.diff(np.append(0, hazard)[np.searchsorted(when, moments, "right")], prepend=0) for _, when, hazard in models
    ]
    busy = np.flatnonzero(np.sum(steps, axis=0) > 0)
    steps, place = np.array(steps)[:, busy], np.searchsorted(moments[busy], horizons, "right")
    incidence = np.zeros((*risks.shape, len(horizons)))
    for start in range(0, len(risks), ROWS):
        own = np.exp(risks[start : start + ROWS])[:, :, None] * steps
        total = own.sum(axis=1)
        after = np.exp(-np.cumsum(total, axis=1))
        lost = -np.diff(after, axis=1, prepend=1.0)
        share = own * (lost / np.maximum(total, 1e-300))[:, None]
        running = np.concatenate([np.zeros((*share.shape[:2], 1)), np.cumsum(share, axis=2)], axis=2)
        incidence[start : start + ROWS] = running[:, :, place]
    return Forecast(risks, incidence)


def _rows(inputs: Inputs, rows: np.ndarray) -> Inputs:
    return Inputs(inputs.basic[rows], inputs.codes[rows])


def _check(train: Classified | Followed, tuning: Classified | Followed) -> None:
    for name, split in (("train", train), ("tuning", tuning)):
        if not len(split.times):
            raise ValueError(f"{name}: no prediction with a history is left; check the labels of this split")
