"""Full fine-tuning, LoRA and a frozen encoder, side by side."""

import json

import pytest

from experiments.studies import adaptations
from tests.experiments.conftest import TINY


def test_the_table_has_times_as_ratios_and_the_metrics_that_there_are():
    interval = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 9}
    own = {"loss": 1.25, "speed": 1000.0, "trained": 4_000, "rate": "0.001", "evaluations": 3}
    own["metrics"] = {"survival/c_index": interval, "survival/c_index/sex=F": interval}
    found = {"full": own, "frozen encoder": {**own, "speed": 2500.0, "trained": 40}}
    head, _, full, frozen = adaptations.format_markdown(found).splitlines()
    assert head.count("|") == full.count("|") == frozen.count("|") and head.endswith("| C-index |")
    assert "| 4,000 | 0.001 | 1.00 | 3 | 1.2500 | 0.700 [0.600, 0.800] |" in full and "| 40 | 0.001 | 0.40 |" in frozen


@pytest.mark.slow
def test_every_way_is_run_and_the_tuning_loss_chooses(workplace, deaths, joint):
    keys = {"train.num_steps": 4, "train.evaluate_every": 2, "train.log_every": 1, "train.batch_size": 4}
    keys |= {"data.path": workplace.data, "data.prepared_dir": workplace.folder / "prepared"}
    keys |= {"model.dropout": TINY["model.dropout"], "survival.num_bins": 3}
    folder = workplace.folder / "adaptations"
    given = [
        f"--labels={deaths}",
        f"--pretrained={joint}",
        f"--workdir={folder}",
        "--learning_rates=0.001,0.01",
        "--jobs=2",
    ]
    chosen = [f"--set={key}={value}" for key, value in keys.items()]
    done = workplace.run([*given, *chosen], "experiments.studies.adaptations")
    assert done.returncode == 0, done.stderr
    lines = (folder / "adaptations.md").read_text().splitlines()[2:]
    trained = [int(line.split("|")[2].replace(",", "")) for line in lines]
    assert len(lines) == len(adaptations.VARIANTS) and trained == sorted(trained, reverse=True)
    sizes = json.loads((folder / "full-0.01" / "parameters.json").read_text())
    assert sizes["trained"] == sizes["all"] == trained[0]
