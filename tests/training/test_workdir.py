import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import behrt_jax
from behrt_jax.data.dataset import Patients
from behrt_jax.data.vocabulary import Vocabulary
from behrt_jax.labels.labels import Labels
from behrt_jax.training import config_file, recipe, workdir
from behrt_jax.training.checkpoints import Checkpoints
from behrt_jax.training.optimizer import make_optimizer
from configs import default
from tests import tiny


def vocabulary(first="A"):
    codes = tuple(chr(ord(first) + index) for index in range(tiny.VOCAB_SIZE - 5))
    counts = tuple(range(len(codes), 0, -1))
    return Vocabulary(codes, counts, counts, {codes[0]: (1.5, 2.5)})


def config(**overrides):
    made = default.get_config()
    with made.unlocked():
        made.model.update(**tiny.SIZES, vocab_size=tiny.VOCAB_SIZE, max_positions=12)
        for key, value in overrides.items():
            section, _, name = key.partition("__")
            made[section][name] = value
    return made


def run_of(made):
    """The recipe of a config, and the facts in it."""
    return recipe.read_recipe(made.to_dict()), recipe.find_facts(made.to_dict())


def test_a_new_workdir_holds_config_and_vocabulary(tmp_path):
    folder = tmp_path / "runs" / "new"
    assert workdir.open_workdir(folder, *run_of(config()), vocabulary()) is False
    assert workdir.open_workdir(folder, *run_of(config()), vocabulary()) is True
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "vocabulary.json"]
    assert json.loads((folder / "config.json").read_text())["recipe"]["model"]["hidden_dim"] == 16
    assert Vocabulary.load(folder / "vocabulary.json").fingerprint == vocabulary().fingerprint


def test_a_config_is_read_back_as_it_was(tmp_path):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    assert config_file.read(tmp_path) == run_of(config())
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["kind"] == "pretraining" and content["facts"]["vocab_size"] == tiny.VOCAB_SIZE
    assert "vocab_size" not in content["recipe"]["model"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train__num_steps": 77}, r"train.num_steps: 1500 there, 77 now"),
        ({"model__hidden_dim": 32}, r"model.hidden_dim: 16 there, 32 now"),
        ({"data__codes_exclude": ("X*",)}, r"data.codes_exclude: \('MEDS_BIRTH'.*\) there, \('X\*',\) now"),
        ({"data__row_length": 64}, r"data.row_length: \d+ there, 64 now"),
        (
            {"optimizer__b2": 0.9, "train__patience": 3},
            r"optimizer.b2: 0.\d+ there, 0.9 now; train.patience: 0 there, 3",
        ),
    ],
)
def test_a_workdir_of_another_config_names_keys_and_values(tmp_path, overrides, message):
    workdir.open_workdir(tmp_path, *run_of(config(train__num_steps=1500)), vocabulary())
    with pytest.raises(ValueError, match=message) as caught:
        workdir.open_workdir(tmp_path, *run_of(config(**{"train__num_steps": 1500, **overrides})), vocabulary())
    assert str(tmp_path) in str(caught.value) and "use another --workdir" in str(caught.value)
    assert config_file.read(tmp_path) == run_of(config(train__num_steps=1500))


def test_a_run_from_before_a_key_goes_on_where_the_key_is_empty(tmp_path):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    with tiny.edited_config(tmp_path) as content:
        del content["recipe"]["code_init"]
    other = config()
    other.code_init = "table.parquet"
    with pytest.raises(ValueError, match="code_init: absent there, table.parquet now"):
        workdir.open_workdir(tmp_path, *run_of(other), vocabulary())
    assert workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    assert config_file.read(tmp_path)[0].code_init == ""


def test_a_changed_seed_is_another_config(tmp_path):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    other = config()
    other.seed = 5
    with pytest.raises(ValueError, match="seed: 0 there, 5 now"):
        workdir.open_workdir(tmp_path, *run_of(other), vocabulary())


@pytest.mark.parametrize(
    "overrides",
    [
        {"data__path": "moved"},
        {"data__prepared_dir": "moved"},
        {"train__log_every": 1},
        {"evaluation__num_mask_samples": 9},
    ],
)
def test_some_keys_may_change_between_a_run_and_its_resume(tmp_path, overrides):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    assert workdir.open_workdir(tmp_path, *run_of(config(**overrides)), vocabulary())
    assert config_file.read(tmp_path) == run_of(config(**overrides))


def test_a_workdir_of_another_vocabulary_is_refused(tmp_path):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    with pytest.raises(ValueError, match="vocabulary.json: belongs to another vocabulary than elsewhere now gives"):
        workdir.open_workdir(tmp_path, *run_of(config(data__path="elsewhere")), vocabulary("B"))


def test_another_size_of_the_vocabulary_is_told_as_such_and_not_as_a_key_nobody_set(tmp_path):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    smaller = vocabulary()
    smaller = Vocabulary(smaller.codes[1:], smaller.counts[1:], smaller.patients[1:], {})
    with pytest.raises(ValueError, match="vocabulary.json: belongs to another vocabulary"):
        workdir.open_workdir(tmp_path, *run_of(config(model__vocab_size=len(smaller))), smaller)


def trained(folder, steps=(3,)):
    """A workdir with a checkpoint of random parameters for each step; the first has the lowest tuning loss."""
    workdir.open_workdir(folder, *run_of(config()), vocabulary())
    made, _ = run_of(config())
    model = workdir.build_model(made.model, made.objective)
    optimizer = make_optimizer(tiny.optimizer_config(), 10)
    state = tiny.initial_state(model, optimizer)
    checkpoints, saved = Checkpoints(folder / "checkpoints", workdir.TUNING_LOSS), {}
    for step in steps:
        saved[step] = tiny.scattered(state.params, seed=step)
        state = state.replace(step=np.asarray(step, np.int32), params=saved[step])
        checkpoints.save(state, {workdir.TUNING_LOSS: float(step)})
    checkpoints.close()
    return model, saved


def test_load_gives_the_best_model_with_the_same_logits(tmp_path):
    model, saved = trained(tmp_path, steps=(3, 6))
    loaded_config, loaded_vocabulary, loaded_model, params = behrt_jax.load(tmp_path)
    assert loaded_config.to_dict() == config().to_dict() and loaded_config.is_locked
    assert loaded_vocabulary == vocabulary()
    batch = tiny.packed_batch([[6, 4]], 12)
    columns, named = tiny.columns(batch), tiny.named(batch)
    apply = jax.jit(model.apply)
    expected, found = (apply(each, *columns, **named) for each in (saved[3], params))
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(jax.jit(loaded_model.apply)(params, *columns, **named), expected)
    assert np.isfinite(found).all() and math.prod(found.shape) == 12 * tiny.VOCAB_SIZE


def test_load_says_what_a_workdir_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"missing/config.json: not the config of a workdir"):
        behrt_jax.load(tmp_path / "missing")
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    with pytest.raises(ValueError, match=r"checkpoints: no such directory; .* run experiments.pretrain first"):
        behrt_jax.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"checkpoints: holds no checkpoint; run experiments.pretrain first"):
        behrt_jax.load(tmp_path)
    (tmp_path / "vocabulary.json").unlink()
    with pytest.raises(ValueError, match=r"vocabulary.json: not a vocabulary file"):
        behrt_jax.load(tmp_path)


@pytest.mark.parametrize("content", ["", '{"model": ', "[1, 2]"])
def test_a_config_that_is_no_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config.json: not the config of a workdir"):
        config_file.read(tmp_path)


def test_load_refuses_files_of_different_runs(tmp_path):
    workdir.open_workdir(tmp_path, *run_of(config(model__vocab_size=99)), vocabulary())
    with pytest.raises(ValueError, match=r"holds 30 tokens, but config.json says model.vocab_size=99"):
        behrt_jax.load(tmp_path)


def test_a_config_that_has_changed_since_it_was_written_is_not_loaded(tmp_path):
    trained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"mask_rate": 0.3', '"mask_rate": 0.7'))
    with pytest.raises(ValueError, match=r"config.json: .*has changed since it was written"):
        behrt_jax.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads(text)))  # the layout of the text does not matter
    behrt_jax.load(tmp_path)


def test_load_says_when_the_parameters_are_of_another_model(tmp_path):
    trained(tmp_path)
    with tiny.edited_config(tmp_path) as content:
        content["recipe"]["model"]["feedforward_dim"] = 24
    with pytest.raises(ValueError, match=r"feedforward.*has shape .*16.*, expected .*24.*another model config"):
        behrt_jax.load(tmp_path)


def labels(rows=slice(None), **changes):
    """Four labels of three subjects."""
    columns = {
        "subject_ids": np.array([1, 1, 2, 5]),
        "prediction_times": np.array(["2020-01-01", "2021-01-01", "2020-06-01", "2020-01-01"], "datetime64[us]"),
        "values": np.array([[0], [1], [1], [0]], np.float32),
        "days": np.full(4, np.nan),
        "events": np.zeros(4, np.int32),
    }
    return Labels("binary", ("ill",), **{name: changes.get(name, values)[rows] for name, values in columns.items()})


def test_a_digest_tells_every_change_of_labels():
    own = workdir.digest(labels())
    assert own == workdir.digest(labels()) and len(own) == 64
    flipped, later = labels().values.copy(), labels().prediction_times + np.timedelta64(1, "us")
    flipped[2] = 0
    others = [labels(values=flipped), labels(prediction_times=later), labels(slice(0, 3)), labels(events=np.ones(4))]
    others += [dataclasses.replace(labels(), kind="multiclass"), dataclasses.replace(labels(), names=("well",))]
    assert len({own, *(workdir.digest(each) for each in others)}) == 7


def test_a_digest_depends_on_names_shapes_and_types_but_not_on_the_order_of_keys():
    values = np.arange(6, dtype=np.float32)
    assert workdir.digest({"a": values, "b": 1}) == workdir.digest({"b": 1, "a": jax.numpy.asarray(values)})
    cases = [{"a": values}, {"b": values}, {"a": values.reshape(2, 3)}, {"a": values.view(np.int32)}, [values]]
    cases += [["ab"], ["a", "b"], [["a"], "b"], ["1"], [1]]
    assert len({workdir.digest(each) for each in cases}) == len(cases)


def patients(codes=(7, 8, 9, 7), microseconds=(0, 0, 1, 0), minutes=(10, 10, 60, 5)):
    return Patients(
        subject_ids=np.array([3, 4]),
        has_birth=np.array([True, False]),
        origins=np.array([0, 50], np.int32),
        offsets=np.array([0, 3, 4]),
        codes=np.array(codes, np.int32),
        visits=np.zeros(4, np.int32),
        minutes=np.array(minutes, np.int32),
        microseconds=np.array(microseconds, np.int32),
    )


def test_the_digest_of_patients_tells_every_change_but_the_order_of_tokens_that_share_a_time():
    own = workdir.digest_patients(patients())
    assert own == workdir.digest_patients(patients(codes=(8, 7, 9, 7)))
    moved = [patients(codes=(7, 8, 7, 9)), patients(minutes=(10, 10, 61, 5)), patients(microseconds=(0, 1, 1, 0))]
    moved += [dataclasses.replace(patients(), offsets=np.array([0, 2, 4])), patients(codes=(7, 7, 9, 7))]
    moved += [dataclasses.replace(patients(), subject_ids=np.array([3, 5]))]
    moved += [dataclasses.replace(patients(), values=np.float32([0, 1, each, 1])) for each in (0.5, np.nan)]
    assert len({own, *map(workdir.digest_patients, moved)}) == 9


def test_a_run_whose_inputs_changed_is_refused(tmp_path):
    begun = {"data.path": "1", "code_init": "2"}
    assert workdir.open_workdir(tmp_path, *run_of(config()), vocabulary(), begun) is False
    assert workdir.open_workdir(tmp_path, *run_of(config()), vocabulary(), begun) is True
    changed = {"data.path": "3", "code_init": "2"}
    with pytest.raises(ValueError, match=r"began with other contents of data.path \(data/synthea-1151\) than there"):
        workdir.open_workdir(tmp_path, *run_of(config()), vocabulary(), changed)


def test_a_workdir_from_before_digests_goes_on_and_says_that_nothing_was_compared(tmp_path, messages):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    assert workdir.open_workdir(tmp_path, *run_of(config()), vocabulary(), {"data.path": "1"})
    assert messages == [
        f"{tmp_path}: has no digest of data.path, as older runs; whether they changed is not checked",
    ]
    assert not (tmp_path / workdir.DIGESTS_FILE).exists()  # it would vouch for what nobody checked


def test_what_is_set_from_the_data_is_not_blamed_where_the_data_changed(tmp_path):
    workdir.open_workdir(tmp_path, *run_of(config(objective__event_edges=(1.0,))), vocabulary(), {"data.path": "1"})
    other = config(objective__event_edges=(2.0,))
    with pytest.raises(ValueError, match="began with other contents of data.path"):
        workdir.open_workdir(tmp_path, *run_of(other), vocabulary(), {"data.path": "2"})
    with pytest.raises(ValueError, match=r"objective.event_edges: \(1.0,\) there, \(2.0,\) now"):
        workdir.open_workdir(tmp_path, *run_of(other), vocabulary(), {"data.path": "1"})
    longer = config(objective__event_edges=(2.0,), data__row_length=64)
    with pytest.raises(ValueError, match=r"belongs to another config \(data.row_length: \d+ there, 64 now\)"):
        workdir.open_workdir(tmp_path, *run_of(longer), vocabulary(), {"data.path": "2"})


def test_keys_of_older_runs_are_read_under_their_names_of_today():
    older = {
        "data": {"separators": False, "events_without_visit": "visits", "path": "d"},
        "history": {"mark": False},
        "foretold": {"codes": []},
        "out_of_time": {"cutoff": "2015-01-01", "gap_days": 3.0},
        "evaluation": {"mask_draws": 7},
        "objective": {"event_times": "any", "event_first": True, "event_visits": 9, "days_weight": 0.5},
    }
    assert config_file.rename_keys(older) == {
        "data": {"use_sep": False, "events_without_visit": "group_by_day", "path": "d"},
        "history": {"prediction_token": False},
        "head": {"features": ()},
        "temporal_split": {"cutoff": "2015-01-01", "outcome_window_days": 3.0},
        "evaluation": {"num_mask_samples": 7},
        "objective": {
            "query_times": "anytime",
            "first_event_only": True,
            "queries_per_row": 9,
            "time_gap_weight": 0.5,
        },
    }
    assert set(config_file.rename_keys({"objective": {"query_times": "after_visits"}})) == {"objective"}


@pytest.mark.parametrize(("rank", "lora"), [(4, {"rank": 4, "alpha": 6.0}), (0, {"rank": 0})])
def test_an_older_scale_of_lora_is_alpha_over_rank_now(rank, lora):
    found = config_file.rename_keys({"lora": {"rank": rank, "scale": 1.5}})
    assert found == {"lora": lora}
    settings = recipe.LoRAConfig(**found["lora"])
    assert settings.scale == 1.5 if rank else settings == recipe.LoRAConfig()


@pytest.mark.parametrize(
    ("history", "features"),
    [
        ({"age_and_sex": True}, ("age_sex",)),
        ({"age_and_sex": False}, ()),
        ({"age_and_sex": True, "regression": True}, ("regression",)),
        ({"age_and_sex": False, "regression": True}, ("regression",)),
    ],
)
def test_the_older_keys_of_what_a_head_reads_are_features_now(history, features):
    older = {"history": {"include_at": True, **history}, "forecast": {"codes": (), "ids": (), "edges": ()}}
    found = config_file.rename_keys(older)
    assert found["history"] == {"include_at": True} and "forecast" not in found
    assert found["head"] == {"features": features}
    assert recipe.HeadConfig(**found["head"]).features == features


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"features": ("age",)}, "head.features: found age; expected a tuple of age_sex, regression"),
        ({"features": "age_sex"}, "head.features: found age_sex; expected a tuple of"),
        ({"features": ("age_sex", "regression")}, "head.features: found age_sex and regression"),
        ({"features": ("forecast",)}, "head.features: found forecast; expected a tuple of"),
    ],
)
def test_a_head_that_cannot_be_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        recipe.HeadConfig(**keys)


def as_older(config: dict) -> dict:
    """A config as it was stored before version 0.2: with old names, and the facts among its keys."""
    older = json.loads(json.dumps(config))
    older["data"]["separators"] = older["data"].pop("use_sep")
    older["evaluation"]["mask_draws"] = older["evaluation"].pop("num_mask_samples")
    del older["data"]["value_encoding"], older["model"]["value_encoding"], older["objective"]["value_weight"]
    return older


def test_an_older_workdir_goes_on_under_the_names_of_today(tmp_path):
    made = config(objective__name="time_to_event", objective__event_edges=(1.0, 20.0))
    workdir.open_workdir(tmp_path, *run_of(made), vocabulary())
    (tmp_path / "config.json").write_text(json.dumps(as_older(made.to_dict())))
    assert config_file.read(tmp_path) == run_of(made)
    assert workdir.open_workdir(tmp_path, *run_of(made), vocabulary()) is True
    fitted = recipe.Facts(tiny.VOCAB_SIZE, event_edges=(1.0, 20.0))
    assert config_file.read(tmp_path)[1] == fitted
    moved = config(objective__name="time_to_event", data__path="moved")
    own = recipe.with_facts(recipe.read_recipe(moved.to_dict()), fitted)
    assert workdir.open_workdir(tmp_path, own, fitted, vocabulary())
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["recipe"]["data"]["path"] == "moved" and content["recipe"]["objective"]["event_edges"] == []
    assert content["facts"]["event_edges"] == [1.0, 20.0] and config_file.read(tmp_path) == (own, fitted)
    with pytest.raises(ValueError, match=r"train.num_steps: \d+ there, 77 now"):
        workdir.open_workdir(tmp_path, *run_of(config(train__num_steps=77)), vocabulary())


REMOVED_KEYS = {"model": {"age_encoding": "bins", "date_encoding": "none"}, "objective": {"masking": "codes"}}


@pytest.mark.parametrize("is_flat", [False, True])
def test_a_run_with_keys_that_were_removed_since_resumes_if_it_left_them_at_their_defaults(tmp_path, is_flat):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    with tiny.edited_config(tmp_path) as content:
        for section, keys in REMOVED_KEYS.items():
            content["recipe"][section] |= keys
    if is_flat:
        older = as_older(config().to_dict())
        for section, keys in REMOVED_KEYS.items():
            older[section] |= keys
        (tmp_path / "config.json").write_text(json.dumps(older))
    assert config_file.read(tmp_path) == run_of(config())
    assert workdir.open_workdir(tmp_path, *run_of(config()), vocabulary()) is True
    with pytest.raises(ValueError, match="model.hidden_dim: 16 there, 32 now"):
        workdir.open_workdir(tmp_path, *run_of(config(model__hidden_dim=32)), vocabulary())


@pytest.mark.parametrize(
    ("section", "key", "value", "commit"),
    [
        ("model", "age_encoding", "time2vec", "f210f47"),
        ("model", "age_encoding", "sinusoidal", "f210f47"),
        ("model", "date_encoding", "time2vec", "f210f47"),
        ("model", "encoder", "hierarchical", "f210f47"),
        ("objective", "masking", "spans", "4683395"),
        ("objective", "masking", "visits", "4683395"),
    ],
)
def test_a_run_of_a_removed_choice_is_refused_with_the_commit_that_loads_it(tmp_path, section, key, value, commit):
    workdir.open_workdir(tmp_path, *run_of(config()), vocabulary())
    with tiny.edited_config(tmp_path) as content:
        content["recipe"][section] |= {**REMOVED_KEYS.get(section, {}), key: value}
    removed = rf"config.json: .*\({section}.{key}={value} \(`git checkout {commit}` has it\): removed, as measured no"
    with pytest.raises(ValueError, match=removed):
        config_file.read(tmp_path)


def test_all_removed_choices_of_a_run_are_named():
    older = {
        "model": {"age_encoding": "time2vec"},
        "objective": {"masking": "spans"},
        "history": {"age_and_sex": True},
        "forecast": {"codes": ["X"]},
    }
    with pytest.raises(ValueError, match="model.age_encoding=time2vec .*objective.masking=spans .*head.forecast_codes"):
        config_file.drop_removed_keys(config_file.rename_keys(older))


def test_edges_of_the_user_are_in_the_recipe_and_fitted_ones_in_the_facts(tmp_path):
    made = recipe.read_recipe(config(objective__event_edges=(1.0,)).to_dict())
    for facts, edges in ((recipe.Facts(30), [1.0]), (recipe.Facts(30, event_edges=(2.0,)), [])):
        config_file.write(tmp_path, recipe.with_facts(made, facts), facts)
        assert json.loads((tmp_path / "config.json").read_text())["recipe"]["objective"]["event_edges"] == edges
        assert config_file.read(tmp_path) == (recipe.with_facts(made, facts), facts)


@pytest.mark.parametrize("name", ["classification", "survival"])
def test_a_fine_tuned_config_is_read_back_as_it_was_and_an_older_one_too(tmp_path, name):
    made = default.get_finetune_config(name)
    facts = recipe.Facts(30, names=("a", "b"))
    kinds = {"classification": {"label_kind": "multi_label"}, "survival": {"survival_edges": (5.0, 9.0)}}
    facts = dataclasses.replace(facts, **kinds[name])
    own = recipe.with_facts(recipe.read_recipe(made.to_dict()), facts)
    assert own.kind == name
    config_file.write(tmp_path, own, facts)
    assert config_file.read(tmp_path) == (own, facts)
    older = recipe.to_config(own, facts)
    older["history"]["mark"] = older["history"].pop("prediction_token")
    older["history"] |= {"age_and_sex": True, "regression": False}
    del older["head"]
    older["foretold"] = {"codes": [], "ids": [], "edges": []}
    (tmp_path / "config.json").write_text(json.dumps(older))
    assert config_file.read(tmp_path) == (own, facts)
    assert recipe.read_recipe(recipe.to_config(own, facts)) == own  # a loaded config is a recipe too


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"new_key": 1}}, "train.new_key: no such key; expected one of num_steps, "),
        ({"new_key": 1}, "new_key: no such key; expected one of data, "),
        ({"survival": {}, "objective": None}, "missing"),
    ],
)
def test_a_key_of_no_section_is_named(changes, message):
    made = config().to_dict()
    for key, value in changes.items():
        made[key] = {**made.get(key, {}), **value} if isinstance(value, dict) else value
    made = {key: value for key, value in made.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        recipe.read_recipe(made)
