import lifelines
import matplotlib.image
import numpy as np
import pytest
import sklearn.metrics

from behrt_jax.metrics import classification
from behrt_jax.plots import classification as plots_classification
from behrt_jax.plots import survival as plots_survival


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Collects the figures, besides that they are written; of few resamples."""
    found, original = {}, plots_classification.save

    def spy(figure, file):
        found[file.stem] = figure
        return original(figure, file)

    for module in (plots_classification, plots_survival):
        monkeypatch.setattr(module, "save", spy)
    monkeypatch.setattr(classification, "FIGURE_RESAMPLES", 20)
    return found


def simulate(seed=0, rows=300):
    rng = np.random.default_rng(seed)
    patients, logits = rng.integers(0, 90, rows), rng.normal(-1, 1.2, rows)
    targets = rng.uniform(size=rows) < 1 / (1 + np.exp(-logits))
    noisy = 1 / (1 + np.exp(-logits - rng.normal(0, 1, rows)))
    return {"BEHRT": 1 / (1 + np.exp(-logits)), "other": noisy}, targets, patients


def simulate_times(seed=1, rows=300):
    rng = np.random.default_rng(seed)
    log_hazard, patients = rng.normal(0, 1, rows), rng.integers(0, 90, rows)
    until = [2000 * rng.exponential(size=rows) / np.exp(log_hazard), 5000 * rng.exponential(size=rows)]
    days = np.minimum.reduce([*until, rng.uniform(500, 5000, rows)])
    death, stroke = (each == days for each in until)
    risks = {"BEHRT": 1 - np.exp(-np.exp(log_hazard) * 365 / 2000), "other": rng.uniform(size=rows)}
    return risks, days, np.select([death, stroke], [1, 2]), patients


def line(axes, label):
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return np.asarray(found.get_xdata(), float), np.asarray(found.get_ydata(), float)


def assert_drawn(files, folder, names):
    assert [file.relative_to(folder).as_posix() for file in files] == [f"figures/{name}.png" for name in names]
    for file in files:
        pixels = matplotlib.image.imread(file)
        assert min(pixels.shape[:2]) > 600 and pixels[..., :3].std() > 0.05


def test_curves_of_classifiers_are_those_of_the_metrics(tmp_path, figures):
    models, targets, patients = simulate()
    files = plots_classification.draw_classification(models, targets, patients, tmp_path / "figures", "Diabetes")
    assert_drawn(files, tmp_path, ["roc", "precision_recall", "decision", "reliability"])
    found = classification.measure(models["other"], targets, patients)
    x, y = line(figures["roc"].axes[0], "other")
    area = sklearn.metrics.auc(x, y)
    assert area == pytest.approx(found["classification/auroc"].value, abs=0.01)
    x, y = line(figures["precision_recall"].axes[0], "other")
    assert np.mean(y) == pytest.approx(found["classification/auprc"].value, abs=0.02)
    assert y[-1] >= targets.mean() and x[-1] == 1
    x, y = line(figures["decision"].axes[0], "other")
    for cut in (0.1, 0.2, 0.3):
        expected = found[f"classification/net_benefit@{cut}"].value
        assert np.interp(cut, x, y) == pytest.approx(expected, abs=0.01)
    assert line(figures["decision"].axes[0], "treat all")[1][0] == pytest.approx(targets.mean())
    bars = figures["reliability"].axes[0].containers[1]
    mean, shares = bars.lines[0].get_data()
    assert np.abs(np.subtract(mean, shares)).mean() == pytest.approx(
        found["classification/calibration_error"].value, abs=1e-9
    )
    for figure in figures.values():
        axes = figure.axes[0]
        assert axes.get_title() == "Diabetes" and axes.get_ylabel() and figure.axes[-1].get_xlabel()
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert {"BEHRT", "other"} <= {*labels}


def test_bands_hold_the_curve_of_the_first_model_alone(tmp_path, figures):
    models, targets, patients = simulate()
    plots_classification.draw_classification(models, targets, patients, tmp_path, "Diabetes")
    for kind in ("roc", "precision_recall", "decision"):
        axes = figures[kind].axes[0]
        (band,) = axes.collections
        outline = band.get_paths()[0].vertices
        x, y = line(axes, "BEHRT")
        middle = outline[np.isclose(outline[:, 0], x[40]), 1]
        assert middle.min() < y[40] < middle.max()


def assert_at_risk(below, days, order):
    written = {text.get_position(): text.get_text() for text in below.texts}
    for group in range(4):
        ticks = [tick for tick, row in written if row == -group]
        assert len(ticks) >= 4 and max(ticks) > 4
        for tick in ticks:
            assert written[tick, -group] == str((days[order[group]] >= tick * 365.25).sum())


def test_survival_of_risk_groups_and_rows_at_risk_are_those_of_lifelines(tmp_path, figures):
    risks, days, causes, patients = simulate_times()
    files = plots_survival.draw_survival(risks, days, causes == 1, patients, 365, tmp_path / "figures", ["death"])
    assert_drawn(files, tmp_path, ["kaplan_meier", "survival_calibration", "cumulative_incidence"])
    axes, below = figures["kaplan_meier"].axes
    assert axes.get_xlabel() == "years since the prediction time"
    order = np.array_split(np.argsort(risks["BEHRT"]), 4)
    for group, label in enumerate(plots_survival.RISK_GROUPS):
        years, survival = line(axes, label)
        fitted = lifelines.KaplanMeierFitter().fit(days[order[group]], causes[order[group]] == 1)
        np.testing.assert_allclose(survival, fitted.predict(years * 365.25), atol=1e-9)
    assert_at_risk(below, days, order)


def test_competing_events_are_drawn_by_the_incidence_of_aalen_and_johansen(tmp_path, figures):
    risks, days, causes, patients = simulate_times()
    given = (risks, days, causes, patients, 365, tmp_path / "figures", ["death", "stroke"])
    files = plots_survival.draw_survival(*given)
    assert_drawn(files, tmp_path, ["incidence_by_risk", "survival_calibration", "cumulative_incidence"])
    axes, below = figures["incidence_by_risk"].axes
    order = np.array_split(np.argsort(risks["BEHRT"]), 4)
    for group, label in enumerate(plots_survival.RISK_GROUPS):
        years, incidence = line(axes, label)
        fitted = lifelines.AalenJohansenFitter(calculate_variance=False).fit(
            days[order[group]], causes[order[group]], 1
        )
        expected = fitted.cumulative_density_.iloc[:, 0]
        places = np.searchsorted(expected.index, years * 365.25, side="right") - 1
        np.testing.assert_allclose(incidence, expected.to_numpy()[places], atol=1e-9)
    assert_at_risk(below, days, order)
    assert figures["survival_calibration"].axes[0].get_ylabel() == "observed (Aalen-Johansen)"
    years, deaths = line(figures["cumulative_incidence"].axes[0], "death")
    strokes = line(figures["cumulative_incidence"].axes[0], "stroke")[1]
    either = lifelines.KaplanMeierFitter().fit(days, causes > 0)
    np.testing.assert_allclose(1 - deaths - strokes, either.predict(years * 365.25), atol=1e-9)
    assert deaths[-1] > strokes[-1] > 0.05


def test_curves_end_and_points_join_where_real_patients_are_few(tmp_path, figures):
    """One patient alone is followed for long, with the highest risks of all, in a fifth of the rows."""
    rng = np.random.default_rng(4)
    patients = np.concatenate([np.arange(80), np.full(20, 80)])
    days = np.concatenate([rng.uniform(10, 500, 80), rng.uniform(1500, 3000, 20)])
    causes, risk = rng.integers(0, 3, 100), np.concatenate([rng.uniform(0.1, 0.5, 80), rng.uniform(0.9, 0.99, 20)])
    given = ({"BEHRT": risk}, days, causes, patients, 365, tmp_path, ["a", "b"], 1)
    ends = {}
    for fewest in (1, 11):
        plots_survival.draw_survival(*given, fewest)
        drawn = [figures[name].axes[0].lines for name in ("incidence_by_risk", "cumulative_incidence")]
        ends[fewest] = max(float(each.get_xdata()[-1]) for lines in drawn for each in lines) * 365.25
        (_, _, (bars,)) = figures["survival_calibration"].axes[0].containers[0]
        assert (max(bar[0, 0] for bar in bars.get_segments()) > 0.9) == (fewest == 1)
    assert ends[1] > 1500 and ends[11] <= np.sort(days[:80])[-10]
    written = [text.get_text() for text in figures["incidence_by_risk"].axes[1].texts]
    assert "20" not in written and "" in written
    targets = risk > rng.random(100)
    files = plots_classification.draw_classification({"BEHRT": risk}, targets, patients, tmp_path, "a", 11)
    assert len(files) == 4
    assert figures["reliability"].axes[0].containers[0].lines[0].get_xdata().max() < 0.9
    files = plots_classification.draw_classification({"BEHRT": risk}, targets, patients, tmp_path, "a", 82)
    assert [file.stem for file in files] == ["roc", "precision_recall", "decision"]


@pytest.mark.parametrize("cause", [1, 2])
def test_exact_incidences_lie_on_the_diagonal_of_the_figure(cause, tmp_path, figures):
    """Other causes are no censoring: 1 - Kaplan-Meier would lie above the diagonal by a quarter."""
    rng, horizon = np.random.default_rng(2), 1825.0
    x = rng.normal(size=8000)
    rates = np.stack([np.exp(x), 2 * np.exp(0.5 * x)]) / horizon
    until = rng.exponential(1 / rates)
    days, causes = np.minimum(until.min(axis=0), 2 * horizon), 1 + until.argmin(axis=0)
    causes = np.where(days < 2 * horizon, causes, 0)
    exact = rates[cause - 1] / rates.sum(axis=0) * -np.expm1(-rates.sum(axis=0) * horizon)
    plots_survival.draw_survival({"exact": exact}, days, causes, np.arange(8000), horizon, tmp_path, ["a", "b"], cause)
    bars = figures["survival_calibration"].axes[0].containers[0]
    predicted, observed = bars.lines[0].get_data()
    np.testing.assert_allclose(observed, predicted, atol=0.05)


def test_one_event_short_times_and_ties_in_risk(tmp_path, figures):
    risks, days, causes, patients = simulate_times()
    rows = days / 10, causes == 1
    plots_survival.draw_survival({"two": np.round(risks["BEHRT"])}, *rows, patients, 30, tmp_path, ["death"])
    axes = figures["cumulative_incidence"].axes[0]
    assert axes.get_xlabel() == "days since the prediction time"
    days, incidence = line(axes, "death")
    fitted = lifelines.KaplanMeierFitter().fit(*rows)
    np.testing.assert_allclose(1 - incidence, fitted.predict(days), atol=1e-9)
    assert 1 <= len(figures["kaplan_meier"].axes[0].lines) <= 3
