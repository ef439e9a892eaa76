import lifelines.utils
import numpy as np
import pytest
import sklearn.linear_model
from scipy.stats import chi2

from behrt_jax.metrics import bootstrap, classification, multilabel
from behrt_jax.metrics import survival as survival_metrics
from behrt_jax.metrics.survival import Curves, Followed, measure
from tests import survival_reference

HORIZONS = (90.0, 365.0, 1825.0)
SCALE = 2000.0


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch, request):
    """The first of the thousand, where it is not their distribution that is tested."""
    if "intervals" not in request.node.name:
        monkeypatch.setattr(bootstrap, "NUM_RESAMPLES", 40)


def simulate(seed=0, num_patients=70, days_apart=5):
    """Up to 6 rows a patient of exponential times of known rates, for up to 3,000 days; of rounded days, many tie."""
    rng = np.random.default_rng(seed)
    patients = rng.permutation(np.repeat(np.arange(num_patients) * 3 + 1, rng.integers(1, 7, num_patients)))
    log_hazard = rng.normal(0, 0.7, 3 * num_patients + 1)[patients] + rng.normal(0, 0.7, len(patients))
    until = SCALE * rng.exponential(size=len(patients)) / np.exp(log_hazard)
    censored = rng.exponential(5000, len(patients))
    days = np.ceil(np.minimum(until, censored) / days_apart) * days_apart
    return log_hazard, Followed(np.minimum(days, 3000), (until <= censored) & (days < 3000)), patients


def true_curves(log_hazard, times=(30, 365, 2000, 3000)):
    return Curves(np.asarray(times, float), np.exp(-np.exp(log_hazard)[:, None] * np.asarray(times) / SCALE))


def drawn_rows(patients, number):
    unique, owners = np.unique(patients, return_inverse=True)
    return np.repeat(np.arange(len(owners)), bootstrap.resamples(len(unique))[number][owners])


def rows_of(followed, rows):
    return Followed(followed.days[rows], followed.events[rows])


def expected_of_scores(scores, followed, train, horizons=HORIZONS):
    found = {"c_index": survival_reference.concordance(followed.events, followed.days, scores)}
    for horizon in horizons:
        early = followed.events & (followed.days < horizon)
        found[f"c_index@{horizon:g}"] = survival_reference.concordance(early, followed.days, scores)
        found[f"uno_c@{horizon:g}"] = survival_reference.uno(train, followed, scores, horizon)
        found[f"auc@{horizon:g}"] = survival_reference.dynamic_auc(train, followed, scores, horizon)
    return found


def values(found, number=None):
    chosen = {name.removeprefix("survival/"): each for name, each in found.items()}
    return {name: each.value if number is None else each.replicates[number] for name, each in chosen.items()}


@pytest.mark.parametrize("chunk", [7, 256])
def test_values_and_resamples_of_scores_equal_their_definitions(chunk, monkeypatch):
    monkeypatch.setattr(survival_metrics, "CHUNK", chunk)
    log_hazard, followed, patients = simulate()
    train, scores = simulate(1)[1], np.round(log_hazard * 4)
    found = measure(scores, followed, patients, train, horizons=HORIZONS)
    assert set(values(found)) == set(expected_of_scores(scores, followed, train))
    for number in (None, 0, 1, 2, 3):
        rows = np.arange(len(scores)) if number is None else drawn_rows(patients, number)
        expected = expected_of_scores(scores[rows], rows_of(followed, rows), train)
        assert values(found, number) == pytest.approx(expected, abs=1e-9)
    lifelines_c = lifelines.utils.concordance_index(followed.days, -scores, followed.events)
    assert values(found)["c_index"] == pytest.approx(lifelines_c, abs=1e-9)


def test_the_integrated_brier_score_and_its_resamples_equal_their_definitions():
    log_hazard, followed, patients = simulate(2)
    train, curves = simulate(3)[1], true_curves(log_hazard * 1.5)
    found = measure(log_hazard, followed, patients, train, curves)
    grid = np.linspace(1825 / 50, 1825, 50)
    survival = np.exp(-curves.cumulative_hazard(grid[None]))
    for number in (None, 0, 1, 2):
        rows = np.arange(len(log_hazard)) if number is None else drawn_rows(patients, number)
        expected = survival_reference.integrated_brier(train, rows_of(followed, rows), survival[rows], grid)
        assert values(found, number)["integrated_brier"] == pytest.approx(expected, abs=1e-9)


def test_curves_that_cross_have_the_auc_of_their_risk_at_each_horizon():
    log_hazard, followed, patients = simulate(4)
    rng, train = np.random.default_rng(0), simulate(5)[1]
    shapes, times = rng.uniform(0.5, 2, len(log_hazard)), np.array([*HORIZONS, 4000.0])
    curves = Curves(times, np.exp(-np.exp(log_hazard)[:, None] * (times / SCALE) ** shapes[:, None]))
    found = values(measure(log_hazard, followed, patients, train, curves, horizons=HORIZONS))
    for place, horizon in enumerate(HORIZONS):
        expected = survival_reference.dynamic_auc(train, followed, 1 - curves.survival[:, place], horizon)
        assert found[f"auc@{horizon:g}"] == pytest.approx(expected, abs=1e-9)


def test_groups_equal_the_metrics_of_their_rows_on_the_same_resamples():
    log_hazard, followed, patients = simulate(6, num_patients=150)
    rng, train, curves = np.random.default_rng(0), simulate(7)[1], true_curves(log_hazard)
    sexes, ages = rng.choice(["F", "M"], len(patients)), rng.uniform(40, 80, len(patients))
    followed.events[(ages >= 60) & (sexes == "M")] = False
    groups = multilabel.group_cells(ages=ages, sexes=sexes) | {"old men": (ages >= 60) & (sexes == "M")}
    found = measure(log_hazard, followed, patients, train, curves, groups, horizons=[365])
    for name, rows in (("sex=F", sexes == "F"), ("age=60-80", ages >= 60)):
        for number in (None, 2):
            drawn = np.arange(len(patients)) if number is None else drawn_rows(patients, number)
            drawn = drawn[rows[drawn]]
            expected = expected_of_scores(log_hazard[drawn], rows_of(followed, drawn), train, [365])
            for metric, value in expected.items():
                assert values(found, number)[f"{metric}/{name}"] == pytest.approx(value, abs=1e-9)
        own = (log_hazard[rows], rows_of(followed, rows), patients[rows], train, curves_of(curves, rows))
        alone = values(measure(*own, horizons=[365]))
        for metric in ("calibration_slope", "d_calibration", "observed_expected", "calibration_error@365"):
            assert values(found)[f"{metric}/{name}"] == pytest.approx(alone[metric])
        assert found[f"survival/c_index/{name}"].n == rows.sum()
        assert found[f"survival/c_index/{name}"].patients == len(np.unique(patients[rows])) < rows.sum()
    assert not [name for name in found if name.endswith(("old men", "age=0-20"))]


def test_a_group_of_one_patient_whom_some_resamples_lack_is_measured_without_a_warning():
    log_hazard, followed, patients = simulate(6)
    chosen = np.unique(patients[followed.events])[0]
    followed.events[patients == chosen] = True
    found = measure(
        log_hazard, followed, patients, simulate(7)[1], true_curves(log_hazard), {"one": patients == chosen}, [365]
    )
    for name in ("integrated_brier", "d_calibration", "observed_expected"):
        assert np.isfinite(found[f"survival/{name}/one"].value)
        assert np.isnan(found[f"survival/{name}/one"].replicates).any()


def curves_of(curves, rows):
    return curves._replace(survival=curves.survival[rows])


def test_pairs_by_hand():
    """A row of 2 days with the event is comparable to those of 3 days and to the censored one of 2 days."""
    followed = Followed(np.array([2.0, 2, 2, 3]), np.array([True, True, False, False]))
    found = measure(np.array([5.0, 5, 5, 7]), followed, np.arange(4), followed, horizons=[])
    assert found["survival/c_index"].value == pytest.approx(0.25)  # of four pairs two tie in score, two are wrong


def test_cumulative_hazards_by_hand():
    curves = Curves(np.array([10.0, 20.0]), np.exp(-np.array([[1.0, 3.0], [0.5, 0.5]])))
    found = curves.cumulative_hazard(np.array([[0.0, 5, 10, 15, 99]]))
    np.testing.assert_allclose(found, [[0, 0.5, 1, 2, 3], [0, 0.25, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(curves.cumulative_hazard(np.array([[20.0], [4.0]])), [[3], [0.2]])


def test_weights_of_censoring_equal_their_definitions():
    train = simulate(8, days_apart=100)[1]
    days = np.arange(0, train.days.max(), 50)
    expected = survival_reference.uncensored(*train, days)
    np.testing.assert_allclose(survival_metrics.inverse_censoring(train, days), 1 / expected)
    none = Followed(np.array([1.0, 2.0]), np.array([True, True]))
    np.testing.assert_array_equal(survival_metrics.inverse_censoring(none, [0, 3]), 1)


def test_incidence_of_one_event_equals_kaplan_meier_of_lifelines_on_weighted_rows():
    _, followed, _ = simulate(9, days_apart=200)
    weights = np.random.default_rng(0).integers(0, 4, (3, len(followed.days))).astype(float)
    horizons = np.array([100.0, 1000.0, 2200.0])
    found = survival_metrics.cumulative_incidence(*followed, weights, horizons)
    for given, values in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(len(given)), given.astype(int))
        fitted = lifelines.KaplanMeierFitter().fit(followed.days[rows], followed.events[rows])
        np.testing.assert_allclose(1 - values, fitted.predict(horizons), atol=1e-12)
    assert np.isnan(survival_metrics.cumulative_incidence(*followed, 0 * weights, horizons)).all()


def test_incidence_of_competing_events_by_hand():
    """Of 5 rows, at day 1 one comes to each event; of the 3 left one is censored at day 2; at day 3 one has the first.

    So the first event comes to 1/5 by day 1, and to half of the 3/5 who are left then, as one of the two at risk.
    """
    days, causes = np.array([3.0, 1, 2, 1, 4]), np.array([1, 2, 0, 1, 0])
    times = np.array([0.5, 1, 2.9, 3, 9])
    every, twice = np.ones((1, 5)), np.array([[2.0, 1, 1, 1, 1]])
    found = survival_metrics.cumulative_incidence(days, causes, every, times)
    np.testing.assert_allclose(found, [[0, 0.2, 0.2, 0.5, 0.5]])
    found = survival_metrics.cumulative_incidence(days, causes, every, times, cause=2)
    np.testing.assert_allclose(found, [[0, 0.2, 0.2, 0.2, 0.2]])
    found = survival_metrics.cumulative_incidence(days, causes, twice, times)
    np.testing.assert_allclose(found, [[0, 1 / 6, 1 / 6, 1 / 6 + 4 / 6 * 2 / 3, 1 / 6 + 4 / 6 * 2 / 3]])


def test_incidence_of_competing_events_equals_that_of_lifelines_on_resampled_rows():
    rng = np.random.default_rng(5)
    days, causes = rng.exponential(1000, 200), rng.integers(0, 3, 200)
    weights, times = rng.multinomial(200, np.full(200, 1 / 200), 3), np.array([50.0, 400, 3000])
    for cause in (1, 2):
        found = survival_metrics.cumulative_incidence(days, causes, weights, times, cause)
        for given, values in zip(weights, found, strict=True):
            fitter = lifelines.AalenJohansenFitter(calculate_variance=False, jitter_level=1e-9)
            rows = given > 0
            fitter.fit(days[rows], causes[rows], cause, weights=given[rows])
            expected = fitter.cumulative_density_.iloc[:, 0]
            places = np.searchsorted(expected.index, times, side="right") - 1
            np.testing.assert_allclose(values, expected.to_numpy()[places], atol=1e-12)


def simulate_competing(seed=0, rows=20_000):
    """Two exponential causes whose rates depend on x, of followed rows; and the exact incidence of the first."""
    rng, horizon = np.random.default_rng(seed), 1825.0
    x = rng.normal(0, 1, rows)
    rates = np.stack([np.exp(x), 2 * np.exp(0.5 * x)]) / horizon
    until, censored = rng.exponential(1 / rates), rng.uniform(0.5 * horizon, 3 * horizon, rows)
    days = np.minimum(until.min(axis=0), censored)
    causes = np.where(days == censored, 0, 1 + until.argmin(axis=0))
    return rates[0] / rates.sum(axis=0) * -np.expm1(-rates.sum(axis=0) * horizon), days, causes, horizon


def test_an_exact_incidence_lies_on_the_diagonal_also_in_resamples():
    exact, days, causes, horizon = simulate_competing()
    weights = np.random.default_rng(1).multinomial(len(days), np.full(len(days), 1 / len(days)), 20)
    weights = np.vstack([np.ones(len(days), int), weights])
    predicted, observed, mass = survival_metrics.calibration_table(exact, days, causes, weights, horizon)
    assert np.abs(predicted - observed)[0].max() < 0.03
    assert np.abs(np.average(predicted - observed, weights=mass)) < 0.005
    assert (np.abs(observed[1:] - observed[0]) < 0.05).all()
    predicted, naive, mass = survival_metrics.calibration_table(exact, days, causes == 1, weights, horizon)
    assert np.average(np.abs(predicted - naive), weights=mass) > 0.2  # 1 - Kaplan-Meier of the cause alone


def test_calibration_at_a_horizon_against_lifelines_in_each_bin():
    log_hazard, followed, patients = simulate(10, num_patients=100)
    curves = true_curves(log_hazard * 2, times=(365, 3000))
    risk = 1 - curves.survival[:, 0]
    found = measure(log_hazard, followed, patients, simulate(11)[1], curves, horizons=[365])
    distances, order = [], np.array_split(np.argsort(risk), 10)
    edges = np.quantile(risk, np.arange(1, 10) / 10)
    for place in range(10):
        rows = np.searchsorted(edges, risk, side="left") == place
        fitted = lifelines.KaplanMeierFitter().fit(followed.days[rows], followed.events[rows])
        distances += [abs(risk[rows].mean() - (1 - fitted.predict(365)))] * rows.sum()
        assert abs(rows.sum() - len(order[place])) <= 1
    assert values(found)["calibration_error@365"] == pytest.approx(np.mean(distances))
    assert np.mean(distances) > 0.03


def test_the_slope_equals_a_poisson_regression_of_scikit_learn():
    log_hazard, followed, patients = simulate(12)
    curves = true_curves(log_hazard * 1.3)
    found = measure(log_hazard, followed, patients, simulate(13)[1], curves, horizons=[1825])
    whole = curves.cumulative_hazard(np.array([[1825.0]]))[:, 0]
    spent = curves.cumulative_hazard(np.minimum(followed.days, 1825)[:, None])[:, 0]
    comes = followed.events & (followed.days <= 1825)
    for number in (None, 0, 1):
        rows = np.arange(len(whole)) if number is None else drawn_rows(patients, number)
        exposure = (spent / whole)[rows]
        model = sklearn.linear_model.PoissonRegressor(alpha=0, tol=1e-10, max_iter=10_000)
        model.fit(np.log(whole[rows])[:, None], comes[rows] / exposure, sample_weight=exposure)
        assert values(found, number)["calibration_slope"] == pytest.approx(model.coef_[0], abs=1e-5)
        ratio = comes[rows].sum() / spent[rows].sum()
        assert values(found, number)["observed_expected"] == pytest.approx(ratio)


def test_the_slope_is_one_of_the_truth_and_what_a_model_is_too_extreme_by():
    log_hazard, followed, patients = simulate(14, num_patients=2000)
    train, every = simulate(15)[1], np.ones((1, len(patients)))

    def calibration(log_hazard):
        curves, importance = true_curves(log_hazard), np.ones(len(log_hazard))
        return survival_metrics._calibration(followed, train, importance, curves, [1825.0])(every)

    for factor in (1.0, 2.0, 0.5):
        assert calibration(log_hazard * factor)["calibration_slope"] == pytest.approx(1 / factor, rel=0.06)
    found = calibration(log_hazard + np.log(2))
    assert found["observed_expected"] == pytest.approx(0.5, rel=0.06)
    assert found["calibration_slope"] == pytest.approx(1, rel=0.06)


def test_deciles_by_hand():
    """An event at survival 0.35 is in the fourth decile; one censored at 0.25 is spread below; past the curve too."""
    curves = Curves(np.array([10.0]), np.array([[0.35], [0.25], [0.25], [1.0]]))
    followed = Followed(np.array([10.0, 10, 99, 0]), np.array([True, False, True, True]))
    expected = np.zeros((4, 10))
    expected[0, 3] = expected[3, 9] = 1
    expected[1:3, :3] = 0.4, 0.4, 0.2
    np.testing.assert_allclose(survival_metrics.d_calibration_shares(followed, curves), expected, atol=1e-12)


def test_d_calibration_holds_its_level_where_rows_of_a_patient_are_alike_and_finds_wrong_curves():
    rng, p_values, naive, wrong = np.random.default_rng(16), [], [], []
    patients = np.repeat(np.arange(80), 4)
    owners, weights = classification.patient_weights(patients, len(patients), seed=0)
    for _ in range(60):
        until, censored = (scale * rng.exponential(size=80)[patients] for scale in (SCALE, 4000))
        followed = Followed(np.minimum(until, censored), until <= censored)
        for shift, kept in ((0.0, p_values), (0.5, wrong)):
            curves = true_curves(np.full(len(patients), shift), times=(1000, 60_000))
            found = survival_metrics._d_calibration(followed, curves, owners, weights)
            kept.append(found["d_calibration_p"][0])
            if not shift:
                naive.append(chi2.sf(found["d_calibration"][0], 9))
    assert np.mean(np.array(p_values) < 0.05) < 0.16  # 5%, with a standard deviation of 3%
    assert np.mean(np.array(naive) < 0.05) > 0.5 and 0.25 < np.mean(p_values) < 0.75
    assert np.mean(np.array(wrong) < 0.05) > 0.3


def test_the_statistic_of_d_calibration_is_that_of_the_paper():
    log_hazard, followed, patients = simulate(17)
    curves = true_curves(log_hazard)
    found = measure(log_hazard, followed, patients, simulate(18)[1], curves)
    for number in (None, 0):
        rows = np.arange(len(log_hazard)) if number is None else drawn_rows(patients, number)
        counts = survival_metrics.d_calibration_shares(rows_of(followed, rows), curves_of(curves, rows)).sum(axis=0)
        even = len(rows) / 10
        assert values(found, number)["d_calibration"] == pytest.approx(((counts - even) ** 2 / even).sum())


def test_competing_causes_count_others_as_censored():
    log_hazard, followed, patients = simulate(19)
    causes = np.where(followed.events, np.random.default_rng(0).integers(1, 3, len(patients)), 0)
    scores = np.stack([log_hazard, -log_hazard, log_hazard], axis=1)
    found = survival_metrics.measure_causes(scores, followed.days, causes, patients, ["death", "stroke", "never"])
    assert set(found) == {"survival/c_index/cause=death", "survival/c_index/cause=stroke"}
    for number in (None, 0, 1):
        rows = np.arange(len(patients)) if number is None else drawn_rows(patients, number)
        for place, name in enumerate(["death", "stroke"]):
            known = causes[rows] == place + 1, followed.days[rows], scores[rows, place]
            assert values(found, number)[f"c_index/cause={name}"] == pytest.approx(
                survival_reference.concordance(*known), abs=1e-9
            )
    with pytest.raises(ValueError, match="causes are none of 0 to 2"):
        survival_metrics.measure_causes(scores[:, :2], followed.days, causes + 1, patients, ["death", "stroke"])


def test_intervals_cover_the_true_concordance():
    """Of rates 1 and 3, half the pairs tie in score and of the others the higher rate comes first in 3 of 4."""
    rng, covered, patients = np.random.default_rng(20), 0, np.arange(120)
    owners, weights = classification.patient_weights(patients, 120, seed=0)
    for _ in range(60):
        high = rng.uniform(size=120) < 0.5
        until, censored = rng.exponential(size=120) / np.where(high, 3, 1), np.full(120, np.inf)
        followed = Followed(np.minimum(until, censored), until <= censored)
        found = survival_metrics._concordances(high.astype(float), followed, owners, weights, np.ones(120), [])
        entry = classification.estimates(found, "", "", np.arange(120))["c_index"].summary()
        covered += entry["low"] <= 0.625 <= entry["high"]
    assert 51 <= covered <= 60  # 95% of 60 is 57, with a standard deviation of 1.7


def test_a_model_equals_itself_and_beats_a_worse_one_by_more_than_noise():
    log_hazard, followed, patients = simulate(21, num_patients=150)
    worse, train = log_hazard + np.random.default_rng(0).normal(0, 1.5, len(patients)), simulate(22)[1]
    first, second = (measure(each, followed, patients, train, true_curves(each)) for each in (log_hazard, worse))
    assert all(entry == {"value": 0, "low": 0, "high": 0} for entry in bootstrap.compare(first, first).values())
    compared = bootstrap.compare(first, second)
    assert all(compared[f"survival/{name}"]["low"] > 0 for name in ("c_index", "uno_c@1825", "auc@1825"))
    assert compared["survival/integrated_brier"]["high"] < 0


def test_without_an_event_what_compares_events_is_left_out():
    log_hazard, followed, patients = simulate(8)
    censored, curves = followed._replace(events=np.zeros(len(patients), bool)), true_curves(log_hazard)
    groups = multilabel.group_cells(sexes=np.where(patients % 2, "F", "M"))
    found = values(measure(log_hazard, censored, patients, followed, curves, groups, HORIZONS))
    compared = {"integrated_brier", "observed_expected", "d_calibration", "d_calibration_p"}
    assert set(found) == compared | {f"calibration_error@{horizon:g}" for horizon in HORIZONS}
    assert found["observed_expected"] == 0
    risk = 1 - np.exp(-curves.cumulative_hazard(np.array([[365.0]])))
    assert found["calibration_error@365"] == pytest.approx(risk.mean())  # Kaplan-Meier stays at 1
    assert not measure(log_hazard, censored, patients, followed)


def test_horizons_that_are_not_reached_are_left_out():
    log_hazard, followed, patients = simulate(23)
    train = simulate(24)[1]

    def reached(followed, train, curves=None):
        return survival_metrics.usable_horizons(followed, train, curves, survival_metrics.HORIZONS)

    assert reached(followed, train) == [30, 90, 365, 1825]
    assert reached(Followed(np.minimum(followed.days, 365), followed.events), train) == [30, 90]
    assert reached(followed, Followed(np.minimum(train.days, 400), train.days < 400)) == [30, 90, 365]
    assert reached(followed, train, true_curves(log_hazard, times=(10, 90))) == [30, 90]
    found = measure(log_hazard, followed, patients, train, true_curves(log_hazard, times=(10,)))
    assert set(values(found)) == {"c_index", "d_calibration", "d_calibration_p"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"followed": Followed(np.array([1.0, -1, np.nan]), np.ones(3))}, "rows: 2 of 3 days are negative or not"),
        ({"followed": Followed(np.ones(3), np.array([0, 1, 2]))}, "1 of 3 events are neither 0 nor 1"),
        ({"train": Followed(np.ones(3), np.ones(2))}, "rows of train: days"),
        ({"scores": np.array([1, np.nan, 2])}, "1 of them are not finite"),
        ({"scores": np.ones(4)}, r"scores \(4,\) do not fit 3 rows"),
        ({"patients": np.ones(2)}, r"\(2,\) patients do not fit 3 rows"),
        ({"curves": Curves(np.array([1.0, 2]), np.ones((3, 1)))}, r"curves \(3, 1\) do not fit 3 rows at 2 times"),
        ({"curves": Curves(np.array([0.0, 2]), np.ones((3, 2)))}, "must rise from above day 0"),
        ({"curves": Curves(np.array([1.0, 2]), np.array([[0.5, 0.6], [0.5, np.nan], [1, 0]]))}, "2 of 3 curves rise"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    followed = Followed(np.array([1.0, 2, 3]), np.ones(3))
    given = {"scores": np.arange(3), "followed": followed, "patients": np.arange(3), "train": followed} | change
    with pytest.raises(ValueError, match=message):
        measure(**given)


def test_concordance_is_that_of_lifelines(monkeypatch):
    log_hazard, followed, _ = simulate(22)
    scores = np.round(log_hazard, 1)
    expected = lifelines.utils.concordance_index(followed.days, -scores, followed.events)
    for chunk in (7, 256):
        monkeypatch.setattr(survival_metrics, "CHUNK", chunk)
        found = survival_metrics.concordance(followed.events, followed.days, scores)
        assert found == pytest.approx(expected, abs=1e-12)
    assert survival_reference.concordance(followed.events, followed.days, scores) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(survival_metrics.concordance(np.zeros(len(scores), bool), followed.days, scores))
