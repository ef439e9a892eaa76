import json

import pytest

from behrt_jax.training.metrics_writer import MetricsWriter, read_metrics, read_series


def write(folder, first_step, steps, loss=1.0):
    writer = MetricsWriter(folder, first_step)
    for step in steps:
        writer.write(step, "train", {"mlm/loss": loss, "tokens_per_second": 10.0})
    writer.close()


def steps_of(folder):
    return [line["step"] for line in read_metrics(folder)]


def test_every_line_is_one_json_object(tmp_path):
    write(tmp_path, 0, [1, 2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    times = [line.pop("seconds") for line in lines]
    assert 0 <= times[0] <= times[1] < 60
    assert lines == [{"step": step, "split": "train", "mlm/loss": 1.0, "tokens_per_second": 10.0} for step in (1, 2)]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_numbers_that_json_does_not_know_become_null(tmp_path):
    write(tmp_path, 0, [1], loss=float("nan"))
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line, parse_constant=pytest.fail)["mlm/loss"] is None


def test_a_resume_takes_out_what_came_after_its_step(tmp_path):
    write(tmp_path, 0, [2, 4, 6, 8])
    write(tmp_path, 4, [5, 6], loss=2.0)
    assert steps_of(tmp_path) == [2, 4, 5, 6]
    assert [line["mlm/loss"] for line in read_metrics(tmp_path)] == [1.0, 1.0, 2.0, 2.0]


def test_the_time_of_training_goes_on_after_a_resume(tmp_path):
    write(tmp_path, 0, [2, 4, 6])
    file = tmp_path / "metrics.jsonl"
    lines = [{**line, "seconds": 100.0 * line["step"]} for line in read_metrics(tmp_path)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    write(tmp_path, 4, [5])
    assert [line["seconds"] for line in read_metrics(tmp_path)[:2]] == [200.0, 400.0]
    assert 400.0 <= read_metrics(tmp_path)[2]["seconds"] < 460.0
    del lines[0]["seconds"]  # a run of an older version
    file.write_text(json.dumps(lines[0]) + "\n")
    write(tmp_path, 2, [3])
    assert read_metrics(tmp_path)[1]["seconds"] < 60.0


def test_a_run_begun_anew_takes_out_everything(tmp_path):
    write(tmp_path, 0, [2, 4])
    write(tmp_path, 0, [3])
    assert steps_of(tmp_path) == [3]


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_cut_short_is_left_out_and_the_file_goes_on_whole(tmp_path, cut):
    write(tmp_path, 0, [2, 4])
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-cut])
    assert steps_of(tmp_path) == [2]
    write(tmp_path, 4, [6])
    assert steps_of(tmp_path) == [2, 6]
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_no_file_has_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_series_holds_one_metric_of_one_split_up_to_a_step(tmp_path):
    writer = MetricsWriter(tmp_path, 0)
    for step, loss in ((2, 0.5), (4, float("nan")), (6, 0.25), (8, 0.125)):
        writer.write(step, "train", {"loss": 9.0})
        writer.write(step, "tuning", {"loss": loss, "other": 1.0})
    writer.close()
    assert read_series(tmp_path, "tuning", "loss", 6) == [0.5, 0.25]
    assert read_series(tmp_path, "tuning", "absent", 6) == []
    assert read_series(tmp_path / "elsewhere", "tuning", "loss", 6) == []
