"""Simulated survival outcomes for any population's histories, with a known hazard of order, age and timing of codes.

No table of counts holds the features of the hazard. The outcomes therefore show what a sequence model adds to a
regression on counts, and how far both stay below the truth.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq

from behrt_jax.data.dataset import MICROSECONDS, Patients
from behrt_jax.data.histories import times_since_birth
from behrt_jax.data.vocabulary import NUM_SPECIAL
from behrt_jax.data.windows import MINUTES_PER_DAY, MINUTES_PER_YEAR

KINDS = ("order", "age", "recency")
MIN_SHARE = 0.15  # least share of histories in which a rule differs from its most common value
CODE_SHARES = (0.05, 0.9)  # range of the share of histories that hold a code, for it to be used in a rule
ORDER_DAYS = 365.0
AGE_YEARS = 20.0
RECENCY_DAYS = (60.0, 365.0)  # range of the start of a window; it ends at four times the start
MAX_TRIES = 2000
DAY, YEAR = MICROSECONDS * MINUTES_PER_DAY, MICROSECONDS * MINUTES_PER_YEAR  # in units of `Patients.times`


class Rule(NamedTuple):
    """A function of a history, computed by `evaluate_rule`.

    Attributes:
      kind: `order`: 1 if the first code of `second` came after the first code of `first`, within `high` days, else 0;
        `age`: log of 1 + the number of codes of `first` recorded from the age of `low` to that of `high` years;
        `recency`: 1 if the last code of `first` lies `low` to `high` days back, else 0.
      first: codes by name.
      second: codes of `order`, none of them in `first`; empty for the other kinds.
      low: as above; 0 for `order`.
      high: as above.
    """

    kind: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    low: float
    high: float

    def __str__(self) -> str:
        first, second = " or ".join(self.first), " or ".join(self.second)
        if self.kind == "order":
            return f"first of ({second}) within {self.high:g} days after the first of ({first})"
        if self.kind == "age":
            return f"log count of ({first}) at {self.low:.1f} to {self.high:.1f} years of age"
        return f"last of ({first}) {self.low:.0f} to {self.high:.0f} days ago"


class Hazard(NamedTuple):
    """A log relative hazard: the weighted sum of R standardised rules.

    Attributes:
      rules: the R rules.
      coefficients: (R,).
      centres, scales: (R,) means and standard deviations of the rules' values in the population.
    """

    rules: tuple[Rule, ...]
    coefficients: np.ndarray
    centres: np.ndarray
    scales: np.ndarray

    def log_hazard(self, patients: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> np.ndarray:
        """Returns the log hazard of N histories at their prediction times: (N,)."""
        values = np.stack([evaluate_rule(rule, patients, times, tokens) for rule in self.rules], axis=1)
        return (values - self.centres) / self.scales @ self.coefficients


class TrueOutcomes(NamedTuple):
    """Times to an event for N histories, with their true hazards.

    Attributes:
      days: (N,) float64, to the event or to censoring.
      events: (N,) bool, whether the event came before censoring.
      log_hazard: (N,) true log relative hazard, with mean 0.
      hazard: the rules that `log_hazard` is computed from.
      scale: days at which the cumulative hazard is 1 for a `log_hazard` of 0.
      shape: of the Weibull baseline.
    """

    days: np.ndarray
    events: np.ndarray
    log_hazard: np.ndarray
    hazard: Hazard
    scale: float
    shape: float

    def survival(self, times: np.ndarray) -> np.ndarray:
        """Returns the true survival probability of each row at (T,) days, (N, T)."""
        return np.exp(-np.exp(self.log_hazard)[:, None] * (np.asarray(times) / self.scale) ** self.shape)


def simulate_outcomes(
    patients: Patients,
    times: np.ndarray,
    tokens: tuple[str, ...],
    seed: int,
    num_rules: int = 3,
    group_size: int = 4,
    spread: float = 1.5,
    scale: float = 1825.0,
    shape: float = 1.0,
    censored: float = 0.3,
) -> TrueOutcomes:
    """Draws times to an event under proportional hazards; deterministic given the arguments.

    Times are Weibull (Bender et al. 2005); censoring is exponential and independent of all else. For competing events,
    draw twice with different seeds and `censored=0`, and keep the earlier event.

    Args:
      patients: N histories, from `histories.histories_at`; one per patient, as each draws its own outcome.
      times: (N,) datetime64, the prediction times.
      tokens: of the vocabulary, by id.
      seed: seed of all random draws.
      num_rules: number of rules; their kinds alternate.
      group_size: number of codes in each group of a rule.
      spread: standard deviation of the log hazard; 0 gives an unpredictable event.
      scale: days at which the baseline cumulative hazard is 1.
      shape: of the Weibull baseline; 1 gives a constant hazard, above 1 a rising one.
      censored: expected share of censored rows, at least 0 and below 1.

    Raises:
      ValueError: a size or share is out of range, or the histories are too similar for such rules.
    """
    _check(num_rules, group_size, spread, scale, shape, censored)
    hazard = draw_hazard(patients, times, tokens, seed, num_rules, group_size, spread)
    log_hazard = hazard.log_hazard(patients, times, tokens)
    rng = np.random.default_rng([seed, 1])
    until_event = scale * (rng.exponential(size=len(times)) / np.exp(log_hazard)) ** (1 / shape)
    until_censored = rng.exponential(size=len(times)) / _censoring_rate(until_event, censored)
    events = until_event <= until_censored
    return TrueOutcomes(np.minimum(until_event, until_censored), events, log_hazard, hazard, scale, shape)


def draw_hazard(patients, times, tokens, seed: int, num_rules: int, group_size: int, spread: float) -> Hazard:
    """Draws rules that vary in the population, with coefficients of random sign and similar size.

    Common codes are drawn more often than rare ones. Rules with the same value in nearly all histories are redrawn.
    The arguments and errors are those of `simulate_outcomes`.
    """
    rng, shares = np.random.default_rng([seed, 0]), _share_of_holders(patients, len(tokens))
    codes = np.flatnonzero((shares >= CODE_SHARES[0]) & (shares <= CODE_SHARES[1]))
    where = f"{len(codes)} codes are in {CODE_SHARES[0]:.0%} to {CODE_SHARES[1]:.0%} of {len(patients):,} histories"
    if len(codes) < 2 * group_size:
        raise ValueError(f"group_size is {group_size}, but {where}; expected {2 * group_size} or more; lower it")
    probabilities, rules, values = shares[codes] / shares[codes].sum(), [], []
    for number in range(num_rules):
        kind = KINDS[number % len(KINDS)]
        for _ in range(MAX_TRIES):
            rule_codes = rng.choice(codes, group_size * (2 if kind == "order" else 1), replace=False, p=probabilities)
            rule = _draw_rule(kind, rule_codes, group_size, patients, tokens, rng)
            rule_values = evaluate_rule(rule, patients, times, tokens)
            if 1 - np.unique(rule_values, return_counts=True)[1].max() / len(rule_values) >= MIN_SHARE:
                break
        else:
            raise ValueError(
                f"no rule of {kind} differs in {MIN_SHARE:.0%} of {len(patients):,} histories after {MAX_TRIES:,} "
                f"draws of {group_size} codes ({where}); raise group_size, or give longer histories"
            )
        rules.append(rule)
        values.append(rule_values)
    centres, scales = np.mean(values, axis=1), np.std(values, axis=1)
    coefficients = rng.choice([-1, 1], num_rules) * rng.uniform(0.7, 1.3, num_rules)
    coefficients *= spread / (coefficients @ ((np.array(values) - centres[:, None]) / scales[:, None])).std()
    return Hazard(tuple(rules), coefficients, centres, scales)


def evaluate_rule(rule: Rule, patients: Patients, times: np.ndarray, tokens: tuple[str, ...]) -> np.ndarray:
    """Returns the value of a rule for N histories at their prediction times: (N,) float64.

    Codes that are missing from `tokens` occur in no history. Without a known birth, no code has an age.
    """
    first, owners = _is_in(rule.first, patients, tokens), patients.owners
    if rule.kind == "order":
        second = _is_in(rule.second, patients, tokens)
        days = (_earliest(patients, second) - _earliest(patients, first)) / DAY
        return ((days > 0) & (days <= rule.high)).astype(float)
    if rule.kind == "age":
        ages = patients.times / YEAR
        in_range = first & (ages >= rule.low) & (ages < rule.high) & patients.has_birth[owners]
        return np.log1p(np.bincount(owners[in_range], minlength=len(patients)))
    latest = np.full(len(patients), -np.inf)
    np.maximum.at(latest, owners[first], patients.times[first])
    days = (times_since_birth(patients, np.arange(len(patients)), times) - latest) / DAY
    return ((days >= rule.low) & (days < rule.high)).astype(float)


def _draw_rule(kind: str, drawn: np.ndarray, size: int, patients: Patients, tokens, rng) -> Rule:
    """Draws the bounds of a rule for the drawn codes."""
    first, second = (tuple(tokens[code] for code in np.sort(part)) for part in (drawn[:size], drawn[size:]))
    if kind == "order":
        return Rule(kind, first, second, 0.0, ORDER_DAYS)
    if kind == "age":
        ages = patients.times[_is_in(first, patients, tokens)] / YEAR
        low = max(rng.choice(ages) - AGE_YEARS / 2, 0.0)
        return Rule(kind, first, (), float(low), float(low + AGE_YEARS))
    low = np.exp(rng.uniform(*np.log(RECENCY_DAYS)))
    return Rule(kind, first, (), float(low), float(4 * low))


def _is_in(codes: tuple[str, ...], patients: Patients, tokens: tuple[str, ...]) -> np.ndarray:
    """Returns which tokens of the histories, except static ones, are among some codes: (T,) bool."""
    return np.isin(tokens, codes)[patients.codes] & (patients.visits >= 0)


def _earliest(patients: Patients, chosen: np.ndarray) -> np.ndarray:
    """Returns the time of the first chosen token of each history: (N,); far in the future if there is none."""
    far = np.iinfo(np.int64).max // 4
    times = np.full(len(patients), far)
    np.minimum.at(times, patients.owners[chosen], patients.times[chosen])
    return times


def _share_of_holders(patients: Patients, num_tokens: int) -> np.ndarray:
    """Returns the share of histories that hold each code, without static tokens; 0 for special tokens."""
    timed = (patients.visits >= 0) & (patients.codes >= NUM_SPECIAL)
    pairs = np.unique(patients.owners[timed].astype(np.int64) * num_tokens + patients.codes[timed])
    return np.bincount(pairs % num_tokens, minlength=num_tokens) / len(patients)


def _censoring_rate(until_event: np.ndarray, share: float) -> float:
    """Returns the daily censoring rate that gives an expected share of censored rows; tiny for a share of 0."""
    tiny = 1e-12 / until_event.max()
    if share == 0:
        return tiny
    upper = 1 / until_event.mean()
    while -np.expm1(-upper * until_event).mean() < share:
        upper *= 2
    return brentq(lambda rate: -np.expm1(-rate * until_event).mean() - share, tiny, upper)


def _check(num_rules, group_size, spread, scale, shape, censored) -> None:
    ranges = {
        "num_rules": (num_rules, num_rules >= 1, "1 or more"),
        "group_size": (group_size, group_size >= 1, "1 or more"),
        "spread": (spread, spread >= 0, "0 or more"),
        "scale": (scale, scale > 0, "above 0 days"),
        "shape": (shape, shape > 0, "above 0"),
        "censored": (censored, 0 <= censored < 1, "0 or more and below 1"),
    }
    for name, (value, is_valid, expected) in ranges.items():
        if not is_valid:
            raise ValueError(f"{name} is {value}; expected {expected}")
