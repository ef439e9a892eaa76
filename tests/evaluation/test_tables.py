"""Tables of hand-made evaluations, cell by cell."""

import copy
import json

from behrt_jax.evaluation import tables
from experiments.studies import results


def entry(value, low=None, high=None, n=12):
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high, "n": n}


RESULT = {
    "split": "held_out",
    "patients": 1234,
    "metrics": {
        "mlm/loss": entry(1.0, n=5678),
        "mlm/accuracy": entry(0.5, 0.4, 0.6),
        "mlm/top5_accuracy": entry(0.75, 0.7, 0.8),
        "mlm/perplexity": entry(2.7, 2.5, 3.1),
        "next_visit/loss": entry(9.0, n=77),
        "next_visit/average_precision": entry(0.31),
        "next_visit/average_precision/new": entry(0.21),
        "next_visit/average_precision/sex=F": entry(0.33),
        "next_visit/average_precision/sex=M": entry(0.29),
        "next_visit/average_precision/age=80+": entry(0.12),
        "next_visit/average_precision/type=CONDITION": entry(0.41),
        "time_to_event/loss": entry(0.9, n=88),
    },
    "baselines": {
        "worst": {"mlm/accuracy": entry(0.1), "mlm/perplexity": entry(50.0), "time_to_event/loss": entry(1.5)},
        "best": {"mlm/accuracy": entry(0.3), "mlm/perplexity": entry(12.34), "time_to_event/loss": entry(1.1)},
        "visits again": {
            "next_visit/average_precision": entry(0.25),
            "next_visit/average_precision/sex=F": entry(0.24),
            "next_visit/average_precision/type=CONDITION": entry(0.34),
        },
        "only days": {"next_visit/log_days_error": entry(0.7)},
    },
    "versus": {
        "worst": {"mlm/accuracy": entry(0.4, 0.3, 0.5)},
        "best": {"mlm/accuracy": entry(0.2, 0.1, 0.3), "time_to_event/loss": entry(-0.2, -0.3, -0.1)},
        "visits again": {"next_visit/average_precision": entry(0.06, -0.01, 0.13)},
    },
    "oracle": {"mlm/accuracy": entry(0.6), "mlm/perplexity": entry(2.0)},
}


def table_of(text: str, title: str) -> list[str]:
    (found,) = (part for part in text.split("\n\n") if part.startswith(title))
    return found.splitlines()


def labels_of(lines: list[str], labels) -> list[str]:
    return [next(label for label in labels if line.startswith(label)) for line in lines if line.startswith(labels)]


def test_rows_stand_from_best_to_worst_below_the_oracle_and_the_run():
    text = tables.format_result(RESULT)
    assert text.startswith("held_out: 1,234 patients, 95% intervals over patients\n\n")
    masked = table_of(text, "masked codes (5,678)")
    names = ("oracle (exact)", "BEHRT (this run)", "best", "worst")
    assert labels_of(masked, names) == list(names)
    assert masked[0].split() == ["masked", "codes", "(5,678)", "accuracy", "top-5", "perplexity"]
    cells = "0.500 [0.400, 0.600] 0.750 [0.700, 0.800] 2.70 [2.50, 3.10]"
    assert masked[2].split()[3:] == cells.split()
    assert masked[3].endswith("12.3 [12.3, 12.3]") and masked[-1] == (
        "difference to best: accuracy +0.200 [+0.100, +0.300]"
    )


def test_a_lower_loss_is_better_in_events_ahead():
    lines = table_of(tables.format_result(RESULT), "events ahead (88)")
    assert labels_of(lines, ("BEHRT", "best", "worst")) == ["BEHRT", "best", "worst"]
    assert lines[-1] == "difference to best: loss (nats) -0.200 [-0.300, -0.100]"


def test_groups_stand_beside_the_best_baseline_where_it_has_them():
    text = tables.format_result(RESULT)
    visits = table_of(text, "next visits (77)")
    assert labels_of(visits, ("BEHRT", "visits again", "only days")) == ["BEHRT", "visits again"]
    assert visits[-1] == "difference to visits again: average precision +0.060 [-0.010, +0.130]"
    header, *groups = table_of(text, "average precision")
    assert header.split() == ["average", "precision", "BEHRT", "(this", "run)", "visits", "again"]
    assert [line.split()[0] for line in groups] == ["sex=F", "sex=M", "age=80+", "type=CONDITION"]
    assert [line.count("[") for line in groups] == [2, 1, 1, 2]
    assert groups[0].split()[1::3] == ["0.330", "0.240"]


def test_a_run_without_baselines_is_laid_out_alone():
    alone = {**RESULT, "baselines": {}, "versus": {}}
    del alone["oracle"]
    text = tables.format_result(alone)
    assert "difference" not in text and "oracle" not in text
    assert table_of(text, "masked codes")[1].startswith("BEHRT (this run)")


def test_each_model_stands_beside_the_oracle_where_several_are_known():
    gaps = {"BEHRT": {"mlm/accuracy": entry(-0.1, -0.2, 0.0)}, "best": {"mlm/accuracy": entry(-0.3)}}
    text = tables.format_result({**RESULT, "versus_oracle": gaps})
    lines = table_of(text, "less the oracle")
    assert labels_of(lines, ("BEHRT (this run)", "best", "worst")) == ["BEHRT (this run)", "best"]
    assert lines[1].endswith("-0.100 [-0.200, +0.000]") and lines[2].endswith("-0.300 [-0.300, -0.300]")
    alone = {**RESULT, "versus_oracle": {"BEHRT": gaps["BEHRT"]}}
    assert "less the oracle" not in tables.format_result(alone)


def test_only_what_was_trained_has_a_table():
    masked = copy.deepcopy(RESULT)
    masked["metrics"] = {name: found for name, found in RESULT["metrics"].items() if name.startswith("mlm/")}
    text = tables.format_result(masked)
    assert "masked codes" in text and "next visits" not in text and "events ahead" not in text


def test_outcomes_and_causes_have_tables_of_their_own():
    found = {f"classification/{name}": entry(0.7) for name in ("auroc", "auprc", "brier", "auroc/sex=F")}
    lines = table_of(tables.format_result({**RESULT, "metrics": found, "baselines": {}}), "outcomes (12)")
    assert lines[0].split() == ["outcomes", "(12)", "AUROC", "AUPRC", "Brier", "score"]
    causes = {f"survival/c_index/cause={name}": entry(value) for name, value in (("death", 0.8), ("stroke", 0.6))}
    compared = {"Cox": {"survival/c_index/cause=death": entry(0.5)}}
    result = {**RESULT, "metrics": causes, "baselines": compared, "versus": {"Cox": causes}}
    lines = table_of(tables.format_result(result), "time to event (12)")
    assert lines[0].split()[-2:] == ["c_index/cause=death", "c_index/cause=stroke"]
    assert labels_of(lines, ("BEHRT", "Cox")) == ["BEHRT", "Cox"] and lines[-1].startswith("difference to Cox: ")


def test_a_population_is_trained_and_compared_with_the_lstm_once(tmp_path, monkeypatch):
    calls = []

    def run_all(runs, jobs=1):
        assert jobs == 2
        for run in runs.values():
            calls.append((run.command, *run.arguments))
            run.workdir.mkdir(exist_ok=True)
            file, baselines = run.workdir / "evaluation.json", {}
            if run.command == "evaluate":
                baselines = {str(tmp_path / "mine-lstm"): {"next_visit/average_precision": entry(0.2)}}
            if run.command == "evaluate" or not file.exists():
                file.write_text(json.dumps({**RESULT, "baselines": baselines}))

    monkeypatch.setattr(results.sweep, "run_all", run_all)
    name, overrides = results.find_data(tmp_path, "mine=DIR")
    first = results.run_populations(tmp_path, {name: overrides}, "configs/joint.py", jobs=2)
    assert [words[:3] for words in calls] == [
        ("pretrain", "--config=configs/lstm.py", f"--workdir={tmp_path / 'mine-lstm'}"),
        ("pretrain", "--config=configs/joint.py", f"--workdir={tmp_path / 'mine'}"),
        ("evaluate", f"--workdir={tmp_path / 'mine'}", f"--compare_to={tmp_path / 'mine-lstm'}"),
    ]
    assert all("--config.data.path=DIR" in words for words in calls[:2])
    assert list(first["mine"]["baselines"]) == ["LSTM"]
    # Pre-training does nothing where data and recipe are the same, and is asked, as they may not be.
    assert results.run_populations(tmp_path, {name: overrides}, "configs/joint.py", jobs=2) == first
    assert calls[3:] == calls[:2]


def test_markdown_holds_each_population_from_best_to_worst():
    other = {"metrics": {"mlm/accuracy": entry(0.9)}, "baselines": {}}
    masked, visits, ahead = results.format_markdown({"bundled": RESULT, "mine": other}).strip().split("\n\n")
    first_cells = [line.split("|")[1].strip() for line in masked.splitlines()]
    names = ["oracle", "**BEHRT**", "best", "worst"]
    assert first_cells == ["mlm", "---", *(f"bundled: {name}" for name in names), "mine: **BEHRT**"]
    assert masked.splitlines()[3].startswith("| bundled: **BEHRT** | 0.500 [0.400, 0.600] | 0.750 [0.700, 0.800] |")
    assert "visits again" in visits and "only days" not in visits and "mine" not in visits
    assert [line.split("|")[1].strip() for line in ahead.splitlines()[2:]] == [
        "bundled: **BEHRT**",
        "bundled: best",
        "bundled: worst",
    ]
