"""Plans: parameters are exact, memory is close to what a step takes, and hours follow from the assumptions."""

import json
import subprocess
import sys

import jax
import pytest

from behrt_jax.benchmarks import plan, step_cost
from behrt_jax.benchmarks.contestants import ROOT
from behrt_jax.benchmarks.plan import Data
from behrt_jax.benchmarks.step_cost import StepCost
from behrt_jax.benchmarks.train_step import loop_flops
from behrt_jax.models.behrt import count_parameters
from behrt_jax.models.config import BEHRTConfig
from behrt_jax.models.fused import block_size
from behrt_jax.recipes import joint, large, medium, small
from behrt_jax.training.recipe import read_recipe

DATA = Data(patients=1000, tokens_per_patient=400.0, vocabulary=1000)

# The peak is reset after the step is compiled, which takes memory too.
MEASURED = r"""
import json, re, sys
import jax
from behrt_jax.benchmarks import step_cost
from behrt_jax.recipes import small
from behrt_jax.training.recipe import read_recipe

def status(name):
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", open("/proc/self/status").read())[1])

rows = int(sys.argv[1])
recipe = read_recipe(small.get_config().to_dict())
cost = step_cost.compute(recipe, 20_000, rows)
step = step_cost.make_step(recipe, 20_000, rows)
batch = step.make_batch()
compiled = step.run.lower(jax.eval_shape(step.make_state), batch).compile()
before = status("VmRSS")
state = step.make_state()
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")
for _ in range(2):
    state, metrics = jax.block_until_ready(compiled(state, batch))
print(json.dumps({"predicted": cost.memory, "measured": status("VmHWM") - before}))
"""


def shrink(config, **train):
    config.data.row_length = 32
    config.model.update({"embedding_dim": 16, "hidden_dim": 32, "num_layers": 1, "feedforward_dim": 32})
    config.train.update({"num_steps": 100, "batch_size": 2, **train})
    return config.to_dict()


def tiny_values(**train):
    return shrink(small.get_config(), **train)


def tiny(**train):
    return read_recipe(tiny_values(**train))


@pytest.fixture(scope="module")
def costs():
    return {rows: step_cost.compute(tiny(), 1000, rows) for rows in (2, 8)}


@pytest.mark.parametrize(
    ("recipe", "encoder"),
    [(small, 503_424), (medium, 2_338_560), (large, 13_142_528)],
    ids=["small", "medium", "large"],
)
def test_parameters_are_those_of_the_tier_and_its_head(recipe, encoder):
    config = recipe.get_config()
    shapes = jax.eval_shape(step_cost.make_step(read_recipe(config.to_dict()), 1000, 1).make_state)
    width, hidden = config.model.embedding_dim, config.model.hidden_dim
    head = hidden * width + width + 2 * width + 1000  # a layer, a normalisation, and a bias for each code
    assert count_parameters(shapes.params) == encoder + head


@pytest.mark.slow
def test_a_larger_batch_needs_more(costs):
    assert costs[8].memory > costs[2].memory
    assert costs[8].flops == pytest.approx(4 * costs[2].flops, rel=0.35)  # the update does not grow
    assert costs[8].parameters == costs[2].parameters
    assert costs[2].optimizer_bytes == pytest.approx(2 * costs[2].parameter_bytes, rel=0.01)


@pytest.mark.slow
def test_accumulation_takes_the_memory_of_a_part_and_the_work_of_all(costs):
    parts = step_cost.compute(tiny(accumulate_steps=2), 1000, 4)
    whole = step_cost.compute(tiny(), 1000, 2)
    assert parts.flops == 2 * whole.flops
    assert parts.temporary_bytes == whole.temporary_bytes + whole.parameter_bytes


def test_every_turn_of_the_loop_over_masked_codes_counts():
    """XLA counts one; with twice the masked codes, the head costs twice as much."""

    config = BEHRTConfig.small(20_000)
    block = block_size(8 * 77, 20_000)
    assert block < 8 * 77
    assert loop_flops(block, (8, 256), 0.3, config) == 0
    product = 2 * block * 64 * 20_000
    assert loop_flops(3 * block, (8, 256), 0.3, config) == 2 * 3 * product  # two more turns of three products


def test_hours_and_dollars_follow_from_the_share_of_the_peak(monkeypatch, messages):
    cost = StepCost(10, 40, 80, 1000, 374e9)
    monkeypatch.setattr(
        step_cost, "compute", lambda config, vocab_size, rows: cost._replace(temporary_bytes=10**9 * rows)
    )
    result = plan.write_plan(tiny_values(num_steps=3600 * 50), DATA, "a40", 0.5, 2.0)
    assert result.seconds_per_step == pytest.approx(374e9 / (37.4e12 * 0.5))  # 0.02 s: 50 steps a second
    assert result.pass_steps == 400_000 // 64 == 6250
    assert 42 <= result.largest_batch <= 43  # 90% of 48 GB, 1 GB a row
    text = "\n".join(messages)
    assert "recipe: 180,000 steps, 28.8 passes, 1.00 hours, 2.00 dollars" in text
    assert "an estimate: 50% of its peak is assumed" in text and "2 rows fit in 90% of 48 GB" in text


@pytest.mark.slow
def test_the_plan_of_this_machine_is_measured(messages):
    result = plan.write_plan(tiny_values(), DATA, "cpu")
    assert result.seconds_per_step > 0 and result.peak > 1e8
    assert any("measured" in line for line in messages)


@pytest.mark.slow
def test_every_objective_can_be_planned():
    config = joint.get_config()
    config.objective.update(time_to_event_weight=0.1, value_weight=0.5)
    config.data.value_encoding, config.model.value_encoding = "continuous", "film"
    assert step_cost.compute(read_recipe(shrink(config)), 100, 2).flops > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patients": 0}, "--patients: found 0"),
        ({"device": "abacus"}, "--device: found 'abacus'; expected one of cpu, a40"),
        ({"utilisation": 1.5}, "--utilisation: found 1.5"),
    ],
)
def test_what_cannot_be_planned_is_one_clear_line(change, message):
    arguments = {"device": "cpu", "utilisation": 0.25, **change}
    data = DATA._replace(patients=arguments.pop("patients", 1000))
    with pytest.raises(ValueError, match=message):
        plan.plan(tiny(), data, **arguments)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resets the peak memory of a process by /proc")
def test_memory_is_close_to_what_a_step_takes():
    command = [sys.executable, "-c", MEASURED, "32"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] == pytest.approx(found["predicted"], rel=0.2)
