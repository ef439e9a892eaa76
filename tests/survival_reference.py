"""Plain definitions of what is measured of times to events, to hold our faster code to."""

import numpy as np


def concordance(events, days, scores, weights=None) -> float:
    """Harrell's C over all pairs in which the first has an event before the other's last day."""
    weights = np.ones(len(days)) if weights is None else weights
    first, other = np.asarray(days)[:, None], np.asarray(days)[None]
    pairs = np.asarray(events, bool)[:, None] & ((first < other) | ((first == other) & ~np.asarray(events, bool)[None]))
    higher = (np.sign(np.asarray(scores)[:, None] - np.asarray(scores)[None]) + 1) / 2
    return float((pairs * higher * weights[:, None]).sum() / (pairs * weights[:, None]).sum())


def uncensored(days, events, at) -> np.ndarray:
    """The chance to be uncensored after each day; on a day events come before censoring."""
    found = []
    for until in at:
        left = 1.0
        for day in np.unique(days[(days <= until) & ~events]):
            left *= 1 - ((days == day) & ~events).sum() / ((days > day) | ((days == day) & ~events)).sum()
        found.append(left)
    return np.array(found)


def uno(train, followed, scores, until) -> float:
    """Uno's C: events before a day, each weighted by the inverse square of its chance to be uncensored."""
    early = followed.events & (followed.days < until)
    return concordance(early, followed.days, scores, 1 / uncensored(*train, np.minimum(followed.days, until)) ** 2)


def dynamic_auc(train, followed, risks, until) -> float:
    """The AUC of those with an event by a day, weighted likewise, against those beyond it (Uno et al. 2007)."""
    cases, controls = followed.events & (followed.days <= until), followed.days > until
    higher = (np.sign(risks[cases][:, None] - risks[controls][None]) + 1) / 2
    weights = 1 / uncensored(*train, followed.days[cases])
    return float(weights @ higher.sum(axis=1) / (weights.sum() * controls.sum()))


def integrated_brier(train, followed, survival, grid) -> float:
    """The Brier score of (N, T) survival, censoring weighted away (Graf et al. 1999), in the mean of the grid."""
    scores, weights = [], 1 / uncensored(*train, np.minimum(followed.days, grid[-1]))
    for at, predicted, after in zip(grid, survival.T, uncensored(*train, grid), strict=True):
        died, lives = followed.events & (followed.days <= at), followed.days > at
        scores.append(np.mean(died * predicted**2 * weights + lives * (1 - predicted) ** 2 / after))
    return float(np.trapezoid(scores, grid) / (grid[-1] - grid[0]))


def aalen_johansen(days, causes, number) -> tuple[np.ndarray, np.ndarray]:
    """The cumulative incidence of each cause after each day that has a row: days, (number, days)."""
    times, free, reached = np.unique(days), 1.0, np.zeros((number, len(np.unique(days))))
    for place, day in enumerate(times):
        at_risk = (days >= day).sum()
        steps = np.array([((days == day) & (causes == cause)).sum() for cause in range(1, number + 1)]) / at_risk
        reached[:, place] = (reached[:, place - 1] if place else 0) + free * steps
        free *= 1 - steps.sum()
    return times, reached
