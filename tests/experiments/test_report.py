"""The report page of tiny runs, read as a reader's browser reads it."""

import json
import shutil

import numpy as np
import polars as pl
import pytest
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

import behrt_jax
from behrt_jax.evaluation import loaded_run
from behrt_jax.evaluation.small_cells import MIN_PATIENTS
from behrt_jax.evaluation.tables import Selected, format_cell, format_signed
from behrt_jax.objectives import scoring
from behrt_jax.report import calibration, layout, patients, scores
from behrt_jax.report import codes as report_codes
from behrt_jax.report import maps as report_maps
from behrt_jax.report import page as report_page
from behrt_jax.report import source as report_source
from behrt_jax.report.layout import SIDE, Colouring
from behrt_jax.report.scores import judge
from behrt_jax.report.training import cost, format_time
from tests import tiny
from tests.experiments.conftest import NUM_STEPS, evaluation_of
from tests.experiments.pages import Page, visit

SECTIONS = ("run", "results", "calibration", "groups", "patients", "codes", "examples", "curves", "cost")
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\"> & \u2028 {{ 7 * 7 }}"


def plane(vectors, seed):
    """In place of UMAP and t-SNE, which take a minute."""
    points = layout.fit_square(PCA(2, random_state=seed).fit_transform(vectors))
    return {"UMAP": points, "t-SNE": points[:, ::-1]}


def write_page(folder, output, data=None, show_patients=None) -> str:
    source = report_source.load(folder, data, show_patients)
    text = report_page.render(source, report_page.find_sections(source, report_maps.DISEASES))
    output.write_text(text, encoding="utf-8")
    return text


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        for module in (report_maps, report_codes):
            patch.setattr(module, "lay_out", plane)
        yield


@pytest.fixture(scope="module")
def described(workplace, tmp_path_factory):
    """The data of the runs with descriptions of codes, one of them hostile, from simulated patients."""
    folder = tmp_path_factory.mktemp("described") / "meds"
    shutil.copytree(workplace.data, folder)
    codes = pl.read_parquet(folder / "data" / "0.parquet")["code"].unique().sort()
    said = pl.Series([HOSTILE if code == "ENCOUNTER//wellness" else f"what {code} is" for code in codes])
    pl.DataFrame({"code": codes, "description": said}).write_parquet(folder / "metadata" / "codes.parquet")
    (folder / "metadata" / "dataset.json").write_text(json.dumps({"dataset_name": HOSTILE, "etl_name": "synthea"}))
    return folder


@pytest.fixture(scope="module")
def explained(joint):
    """A copy of a run with an explained patient, as experiments.explain writes it."""
    folder = joint.parent / "explained"
    shutil.copytree(joint, folder)
    token = {"code": "ENCOUNTER//wellness", "description": HOSTILE, "visit": 0}
    rare = {"code": "[UNK]", "description": None, "visit": 0}
    predicted = {"code": "A//1", "description": "first", "probability": 0.25, "came": True}
    predicted["drivers"] = {"occlusion": [0.5, -2.0, 0.0]}
    patient = {
        "number": 1,
        "visits": [{"visit": 0, "age": 40.26, "days_since_previous": 0.0}],
        "tokens": [token, {"code": "B//2", "description": None, "visit": 0}, rare],
        "predictions": [predicted],
        "came": [{"code": "C//3", "description": "what is told to have come"}],
    }
    about = {"asked": "next_visit", "methods": {"occlusion": "how much"}, "patients": [patient]}
    (folder / "attributions.json").write_text(json.dumps({**about, "synthetic": True}))
    return folder


@pytest.fixture(scope="module")
def file(explained, described, tmp_path_factory):
    """The page of a run on masked codes, next visits and events, with all its sections."""
    output = tmp_path_factory.mktemp("page") / "report.html"
    write_page(explained, output, str(described))
    return output


@pytest.fixture(scope="module")
def page(file) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def test_the_numbers_are_those_of_the_evaluation(whole, tmp_path):
    folder, _ = whole
    cells = Page(write_page(folder, tmp_path / "report.html", show_patients=True)).cells
    result = json.loads((folder / "evaluation.json").read_text())
    assert len(result["baselines"]) >= 2
    for found in (result["metrics"], *result["baselines"].values()):
        assert format_cell(found["mlm/accuracy"]) in cells
        assert format_cell(found["mlm/perplexity"]) in cells
    for found in result["versus"].values():
        assert any(cell.startswith(format_signed(found["mlm/accuracy"])) for cell in cells)
    tuning = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line["mlm/loss"] for line in tuning if line["split"] == "tuning"][-1]
    assert f"{last:.4f}" in cells


def test_every_section_is_there_under_headings_in_order(page):
    ids = page.ids()
    assert len(ids) == len(set(ids))
    assert set(SECTIONS) <= set(ids)
    links = [found["href"] for tag, found in page.elements if tag == "a"]
    assert {f"#{section}" for section in SECTIONS} <= set(links)
    assert all(link.removeprefix("#") in ids for link in links)
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))


def test_what_is_seen_is_said_too(page):
    tags = [tag for tag, _ in page.elements]
    assert dict(page.elements)["html"]["lang"] == "en"
    assert {"header", "nav", "main"} <= set(tags)
    assert tags.count("table") == tags.count("caption")
    assert all(found.get("scope") in ("row", "col") for tag, found in page.elements if tag == "th")
    pictures = [found for tag, found in page.elements if tag == "img"]
    assert pictures and all(len(found["alt"]) > 20 for found in pictures)
    maps = [found for tag, found in page.elements if tag == "svg" and found.get("role") == "img"]
    assert [each["aria-label"].split(".")[0].split()[-1] for each in maps] == ["patients"] * 2 + ["codes"] * 2
    labelled = {found["for"] for tag, found in page.elements if tag == "label"}
    assert {found["id"] for tag, found in page.elements if tag in ("select", "input")} <= labelled


def test_nothing_is_loaded_and_no_text_is_run(file, page):
    text = file.read_text(encoding="utf-8")
    for tag, found in page.elements:
        assert not any(key.startswith("on") for key in found), tag
        for key in ("src", "href", "action", "data", "srcset"):
            assert found.get(key, "#").startswith(("#", "data:")), (tag, found)
    assert not {"iframe", "object", "embed", "form", "base"} & {tag for tag, _ in page.elements}
    assert [tag for tag, found in page.elements].count(
        "script"
    ) == 4  # one of code; three of JSON: two maps, the lookup
    assert "default-src 'none'" in text and "@import" not in text and "url(" not in text
    assert "<script>alert" not in text and "<img src=x" not in text
    assert HOSTILE in page.text  # in the title and the timeline, as text
    assert any(HOSTILE in each.get("names", ()) for each in page.json)


def test_a_timeline_tells_what_came_and_what_drove_it(page):
    assert "age 40.3" in page.text
    row = page.cells.index("first")
    assert page.cells[row + 1 : row + 3] == ["25%", "yes"]
    assert "What came: what is told to have come." in page.text
    assert "a code too rare to be told" in page.text
    driver = page.cells.index("B//2")  # the larger effect comes first
    assert page.cells[driver + 2] == "-2.000 lowered"
    assert page.cells.index(HOSTILE, driver) > driver


def test_no_single_patient_of_data_that_may_be_real(explained, workplace, tmp_path):
    about = json.loads((explained / "attributions.json").read_text())

    def read(synthetic, show_patients):
        source = report_source.load(explained, None, show_patients)
        source = source._replace(folder=tmp_path)
        (tmp_path / "attributions.json").write_text(json.dumps({**about, "synthetic": synthetic}))
        sections = [report_maps.patient_maps(source, report_maps.DISEASES), patients.examples(source)]
        return Page(report_page.render(source, sections))

    for synthetic in (False, True):  # a file of simulated patients says nothing of this data set
        page = read(synthetic, None)
        assert ("age 40.3" in page.text) == synthetic
        sizes = [int(line.split()[0]) for line in page.json[0]["hover"][0]]
        assert sizes and min(sizes) >= MIN_PATIENTS and sum(sizes) <= 60
        for colouring in page.json[0]["colourings"].values():
            assert all(len(each) == len(sizes) for each in colouring["bands"][:1])
        counts = [cell for cell in page.cells if cell.isdecimal()]
        assert "under 11" in page.cells and not {str(number) for number in range(1, 11)} & set(counts)
    assert "age 40.3" not in read(True, False).text
    shown = read(False, True)
    assert len(next(iter(shown.json[0]["colourings"].values()))["bands"][0]) > 50
    assert "keep it where their records may be kept" in shown.text
    assert "age 40.3" in shown.text
    ids = pl.read_parquet(workplace.data / "metadata" / "subject_splits.parquet")["subject_id"].to_list()
    assert not {str(each) for each in ids if each > 999} & set(shown.cells)


def test_cells_hold_as_many_as_they_say():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(100, 3, (40, 2)), rng.uniform(0, SIDE, (30, 2))])
    female = rng.integers(0, 2, 70).astype(float)
    ages = np.where(np.arange(70) == 3, np.nan, 50.0)
    given = [Colouring("sex", female, (0.5,), ("male", "female")), Colouring("age", ages, (40.0,), ("young", "old"))]
    places, counts, colourings = layout.gather(points, given)
    assert counts.min() >= MIN_PATIENTS and counts.sum() >= 0.8 * 70
    assert len(places) == len(counts) == len(colourings[0].values)
    assert colourings[0].name == "sex: share female" and colourings[0].values.max() <= 1
    assert set(colourings[1].bands()) == {1}
    few, sizes, _ = layout.gather(points[:3], [Colouring("sex", female[:3], (0.5,), ("male", "female"))])
    assert not len(few) and not len(sizes)


COARSE = {"value": 0.45678, "low": 0.44567, "high": 0.46789, "n": 4397, "patients": 300, "predicted": 0.5}


def planted(run, folder, data):
    """A copy of a run of many held-out patients; but one has the oldest band alone, in 76 rows, and one sex is of 9."""
    shutil.copytree(run, folder)
    entry = {"value": 0.61234, "low": 0.58765, "high": 0.63456, "n": 4321, "patients": 300}
    one = {"value": 0.51239, "low": 0.41238, "high": 0.61237, "n": 76, "patients": 1}
    few = {"value": 0.71239, "low": 0.61238, "high": 0.81237, "n": 87, "patients": 9}
    rest = {"value": 0.66239, "low": 0.64238, "high": 0.68237, "n": 4233, "patients": 250}
    bands = {"age=20-40": {**entry, "value": 0.55555}, "age=60-80": rest, "age=80+": one, "sex=F": rest, "sex=M": few}
    metrics = {"mlm/accuracy": entry} | {f"mlm/accuracy/{name}": each for name, each in bands.items()}
    versus = {name: {"value": 0.0321, "low": 0.0123, "high": 0.0456} for name in metrics}
    result = {"split": "held_out", "patients": 300, "metrics": metrics}
    result |= {"baselines": {"linear": metrics}, "versus": {"linear": versus}}
    result["reliability"] = {"mlm": [[{**one, "predicted": 0.9}, {**entry, "predicted": 0.4}], [COARSE]]}
    (folder / "evaluation.json").write_text(json.dumps(result))
    with tiny.edited_config(folder) as config:
        config["recipe"]["data"]["path"] = str(data)
    return [format_cell(each) for each in (one, few, {**entry, "value": 0.55555}, rest)]


def test_a_group_of_one_real_patient_is_shown_nowhere(explained, workplace, tmp_path):
    """Nor is the group from which, with the whole, it could be computed: the next smallest of each partition."""
    one, few, large, next_smallest = planted(explained, tmp_path / "run", workplace.data)
    vocabulary = behrt_jax.load(tmp_path / "run").vocabulary
    rare = {code for code, number in zip(vocabulary.codes, vocabulary.patients, strict=True) if number < MIN_PATIENTS}
    assert rare
    page = Page(text := write_page(tmp_path / "run", tmp_path / "report.html"))
    assert {large, format_cell(COARSE)} <= set(page.cells) and not {one, few, next_smallest} & set(page.cells)
    assert not [value for value in ("0.512 [", "0.712 [", "0.662 [") if value in text]
    names = {name for each in page.json for name in [*each.get("names", ()), *each.get("codes", ())]}
    assert len(names) > 10 and not rare & (names | set(page.cells))
    shown = Page(write_page(tmp_path / "run", tmp_path / "report.html", show_patients=True))
    assert {one, few, large, next_smallest} <= set(shown.cells) and format_cell(COARSE) not in shown.cells
    assert rare <= {name for each in shown.json for name in [*each.get("names", ()), *each.get("codes", ())]}


def test_the_report_draws_what_evaluation_wrote_and_asks_no_model(joint, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the report scored something")

    for owner, name in ((scoring, "score"), (scoring, "predict_next_visits"), (loaded_run, "load_run")):
        monkeypatch.setattr(owner, name, refuse)
    folder = shutil.copytree(joint, tmp_path / "run")
    result = evaluation_of(folder)
    source = report_source.load(folder, None, True)
    monkeypatch.setattr(type(source.model), "apply", refuse)
    sections = [scores.held_out(source), calibration.calibration(source), scores.groups(source)]
    page = Page(report_page.render(source, sections))
    assert {name.partition("/")[0] for name in result["metrics"]} == {"mlm", "next_visit", "time_to_event"}
    groups = [name for name in result["metrics"] if name.startswith("mlm/accuracy/")]
    assert "mlm/accuracy/sex=F" in groups and any("age=" in name for name in groups)
    assert {format_cell(result["metrics"][name]) for name in ("mlm/accuracy", *groups)} <= set(page.cells)
    for (finest, *_), title in zip(result["reliability"].values(), calibration.TITLES.values(), strict=False):
        assert f"{title}: predicted against observed" in page.text
        for point in finest:
            row = [f"{point['predicted']:.3f}", format_cell(point), f"{point['n']:,}"]
            assert any(page.cells[place : place + 3] == row for place in range(len(page.cells)))
    for part in ("reliability", *groups):  # as an older version wrote it
        result.pop(part, None) or result["metrics"].pop(part)
    (folder / "evaluation.json").write_text(json.dumps(result))
    older = Page(report_page.render(source, [calibration.calibration(source), scores.groups(source)]))
    assert older.text.count("An older version wrote this evaluation, without ") == 2
    assert older.text.count(f"python -m experiments.evaluate --workdir={folder}") == 2


def test_what_is_missing_names_the_command_that_makes_it(workplace, whole, tmp_path, messages):
    folder = tmp_path / "bare"
    shutil.copytree(whole[0], folder)
    for name in ("evaluation.json", "metrics.jsonl"):
        (folder / name).unlink()
    shutil.rmtree(folder / "tensorboard")
    with tiny.edited_config(folder) as config:
        config["recipe"]["data"]["path"] = str(tmp_path / "gone")
    source = report_source.load(folder, None, None)
    page = Page(report_page.render(source, report_page.find_sections(source, report_maps.DISEASES)))
    assert any("--data=DIR" in line for line in messages)
    assert f"python -m experiments.evaluate --workdir={folder}" in page.text
    assert f"python -m experiments.explain --workdir={folder}" in page.text
    assert f"python -m experiments.report --workdir={folder} --data=DIR" in page.text
    assert str(tmp_path / "gone") not in page.text
    assert "not recorded" in page.cells and f"{NUM_STEPS} of {NUM_STEPS}" in page.cells
    assert "python -m experiments.report --workdir=RUN" in page.text
    assert len([each for each in page.json if "names" in each]) == 1  # the codes need no data
    assert str(tmp_path) not in " ".join(page.cells)


def test_outcomes_are_calibrated_and_shown(workplace, survival_run, tmp_path):
    folder = survival_run[0]
    page = Page(write_page(folder, tmp_path / "report.html", show_patients=True))
    result = json.loads((folder / "evaluation.json").read_text())
    assert format_cell(result["metrics"]["survival/c_index"]) in page.cells
    assert "the time to" in page.text and "within 1825 days: predicted against observed" in page.text
    assert "joint" in page.cells and str(workplace.folder) not in " ".join(page.cells)


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("mlm/accuracy", 0.1, 0.3, "better"),
        ("mlm/accuracy", -0.3, -0.1, "worse"),
        ("mlm/accuracy", -0.1, 0.3, "cannot be told apart"),
        ("mlm/perplexity", 0.1, 0.3, "worse"),
        ("time_to_event/loss", -0.3, -0.1, "better"),
        ("survival/integrated_brier", -0.3, -0.1, "better"),
        ("classification/calibration_slope", 0.1, 0.3, ""),
    ],
)
def test_differences_are_judged_by_their_interval(metric, low, high, verdict):
    assert judge(metric, {"value": (low + high) / 2, "low": low, "high": high}) == verdict


def test_intervals_lie_along_the_metric(monkeypatch):
    painted = []
    monkeypatch.setattr(scores, "draw", lambda caption, summary, table, paint, size: painted.append(paint))
    found = {"mlm/accuracy": {"value": 0.5, "low": 0.4, "high": 0.7, "n": 9}}
    scores._draw_forest(Selected({"mlm/accuracy": "accuracy"}, {"a": found, "b": found}, "", 9), "")
    axes = Figure().subplots()
    painted[0](axes)
    segments = [container.lines[2][0].get_segments()[0].tolist() for container in axes.containers]
    assert segments == [[[0.4, place], [0.7, place]] for place in (0, 1)]


def test_the_cost_has_the_time_of_training_and_its_sessions(whole):
    (table,) = cost(report_source.load(whole[0], None, None)).parts
    found = dict(table.rows)
    last = json.loads((whole[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["starts and resumptions"] == "1" and 0 < last["seconds"] < 600
    assert found["wall time, with evaluations on tuning"] == format_time(last["seconds"])
    assert [format_time(each) for each in (5, 125, 3600, 7199)] == ["5 s", "2 min", "1 h 0 min", "2 h 0 min"]


def test_visits_and_codes_past_what_fits_are_counted():
    tokens = [{"code": f"C//{number}", "description": "", "visit": 11} for number in range(12)]
    visits = [{"visit": number, "age": None, "days_since_previous": 3.0} for number in range(12)]
    patient = {"number": 2, "visits": visits, "tokens": tokens, "predictions": [], "came": []}
    found = patients._timeline(patient, {"asked": "mlm"})
    assert found.left_out == "4 earlier visits are not shown." and len(found.visits) == 8
    assert found.visits[-1][0] == "age unknown, 3 days after the visit before"
    assert found.visits[-1][1][-1] == "and 4 more" and not found.tables[0].rows


@pytest.mark.parametrize(("hidden", "shown"), [(0, (0, 8)), (10, (6, 14)), (19, (12, 20))])
def test_the_visit_of_a_hidden_code_is_shown(hidden, shown):
    tokens = [{"code": f"C//{number}", "description": "", "visit": hidden} for number in range(12)]
    tokens.append({"code": "[MASK]", "description": None, "visit": hidden})
    visits = [{"visit": number, "age": float(number), "days_since_previous": 0.0} for number in range(20)]
    patient = {"number": 1, "visits": visits, "tokens": tokens, "predictions": [], "came": []}
    found = patients._timeline(patient, {"asked": "mlm"})
    assert [when for when, _ in found.visits] == [f"age {number}.0" for number in range(*shown)]
    assert found.visits[hidden - shown[0]][1][0] == "[MASK]"
    counts = {"earlier": shown[0], "later": 20 - shown[1]}
    said = " and ".join(f"{count} {when}" for when, count in counts.items() if count)
    assert found.left_out == f"{said} visits are not shown."


def test_an_outcome_is_told_by_its_risks():
    told = {"name": "death", "risk_by_day": {"30": 0.0123, "365": 0.2}, "drivers": {"occlusion": [0.0]}}
    patient = {"number": 1, "visits": [], "tokens": [{"code": "A", "visit": None}], "predictions": [told]}
    risks, drivers = patients._timeline(patient, {"asked": "outcome"}).tables
    assert risks.rows == [["death within 30 days", "1.2%"], ["death within 365 days", "20.0%"]]
    assert risks.note == "" and drivers.rows == [["nothing", "", ""]]


@pytest.mark.slow
def test_maps_are_a_function_of_the_seed_and_keep_neighbours():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 40)
    vectors = (10 * np.eye(3)[groups] @ rng.normal(size=(3, 16)) + rng.normal(size=(120, 16))).astype(np.float32)
    found = layout.lay_out(vectors, 0)
    again = layout.lay_out(vectors, 0)
    assert list(found) == ["UMAP", "t-SNE"]
    for name, points in found.items():
        np.testing.assert_array_equal(points, again[name])
        assert points.min() >= 0 and points.max() <= SIDE
        distances = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(120)
        assert (groups[distances.argmin(axis=1)] == groups).mean() > 0.95


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1024, 1920])
def test_the_page_opens_fits_and_asks_for_nothing(browser, file, width):
    tab, troubles = visit(browser, file, width)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("[...document.images].every((each) => each.complete && each.naturalWidth > 0)")
    assert file.stat().st_size < 8e6
    assert troubles == []
    tab.close()


@pytest.mark.browser
def test_every_section_is_reached_by_the_keyboard(browser, file):
    tab, troubles = visit(browser, file, 1024)
    for _ in range(30):
        tab.keyboard.press("Tab")
        link = tab.evaluate("document.activeElement.getAttribute('href')")
        if link and link not in ("#main", "#glance"):
            assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
            tab.keyboard.press("Enter")
            assert tab.evaluate("location.hash") == link
            assert tab.evaluate("document.querySelector(location.hash).getBoundingClientRect().top") < 800
            tab.evaluate("(link) => document.querySelector(`nav a[href='${link}']`).focus()", link)
        if link == f"#{SECTIONS[-1]}":
            break
    assert link == f"#{SECTIONS[-1]}"
    assert troubles == []
    tab.close()


@pytest.mark.browser
def test_codes_are_found_and_maps_coloured_and_read(browser, file):
    tab, troubles = visit(browser, file, 1024)
    tab.focus("#code-words")
    tab.keyboard.type("alert wellness")
    assert "alert(1)" in tab.inner_text(".lookup caption")  # as text
    assert tab.locator(".lookup > .scroll tbody tr").count() == 8
    tab.focus("#patients-map-by")
    before = tab.get_attribute("#patients-map svg[role=img] circle", "class")
    for _ in range(2):
        tab.keyboard.press("ArrowDown")
    chosen = tab.input_value("#patients-map-by")
    assert f"Coloured by {chosen}." in tab.get_attribute("#patients-map svg[role=img]", "aria-label")
    assert chosen == "visits" and before.startswith("band")
    tab.locator("#patients-map svg[role=img] circle").nth(3).click(force=True)
    assert "visits: " in tab.inner_text("#patients-map .told")
    assert tab.locator("script").count() == 4 and troubles == []
    tab.close()
