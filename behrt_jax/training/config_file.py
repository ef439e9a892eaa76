"""The file `config.json` of a workdir: the recipe of a run and the facts beside it; reads those of older versions."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from behrt_jax.training.recipe import Facts, Recipe, find_facts, read_recipe, take, to_config, with_facts, without_facts

CONFIG_FILE = "config.json"
DIGEST = "digest"  # the key of the SHA-256 of the rest of the file, which files of older versions lack
# Keys that may change when a run resumes: locations of data, and settings of logging and evaluation only.
# The vocabulary size follows from the vocabulary, which is compared by its fingerprint.
KEYS_ALLOWED_TO_CHANGE = (
    "data.path",
    "data.prepared_dir",
    "train.log_every",
    "evaluation.num_mask_samples",
    "model.vocab_size",
)
# Keys set from the data and the labels: if these changed, the error names the changed input first.
SET_FROM_DATA = (
    "names",
    "classification.kind",
    "survival.edges",
    "survival.num_causes",
    "objective.event_edges",
)
# Old names in workdirs from before version 0.2; to be dropped at version 1.0. Sections come before their keys.
RENAMED_KEYS = {
    "foretold": "forecast",
    "out_of_time": "temporal_split",
    "temporal_split.gap_days": "outcome_window_days",
    "data.separators": "use_sep",
    "evaluation.mask_draws": "num_mask_samples",
    "history.mark": "prediction_token",
    "objective.days_weight": "time_gap_weight",
    "objective.event_first": "first_event_only",
    "objective.event_times": "query_times",
    "objective.event_visits": "queries_per_row",
}
RENAMED_VALUES = {
    ("data", "events_without_visit", "visits"): "group_by_day",
    ("objective", "query_times", "visits"): "after_visits",
    ("objective", "query_times", "any"): "anytime",
}
# Old keys of what the head reads beside the embedding, and the names in `head.features`; `regression` has age and sex.
HEAD_FEATURES = {"history.age_and_sex": "age_sex", "history.regression": "regression"}
# Keys that older runs lack, with the value equivalent to the behaviour of those runs.
DEFAULTS = {"objective": {"first_event_only": False, "query_times": "after_visits", "known_time_share": 0.0}}
# Keys of removed choices, with the value equivalent to the current behaviour and the last commit with the others; and
# removed values of other keys.
REMOVED_KEYS = {
    "model.age_encoding": ("bins", "f210f47"),
    "model.date_encoding": ("none", "f210f47"),
    "objective.masking": ("codes", "4683395"),
    "head.forecast_codes": ((), "db2023d"),
}
REMOVED_FACTS = ("forecast_ids", "forecast_edges")  # of the head, which went with the codes
REMOVED_VALUES = {("model", "encoder", "hierarchical"): "f210f47"}


def read(workdir: Path) -> tuple[Recipe, Facts]:
    """Reads the recipe of a workdir, with the facts in its sections, and the facts.

    Raises:
      ValueError: the file is missing, is not JSON, has changed since it was written, does not hold a recipe, or holds
        one with a removed choice.
    """
    file = workdir / CONFIG_FILE
    try:
        content = json.loads(file.read_text())
        if (digest := content.pop(DIGEST, None)) and digest != _digest(content):
            raise ValueError(f"it has changed since it was written; restore it, or remove '{DIGEST}' to accept it")
        is_flat = "recipe" not in content  # before version 0.2 the file was a config that held the facts
        config = to_tuples(rename_keys(content if is_flat else content["recipe"]))
        for section, defaults in DEFAULTS.items():
            if section in config:
                config[section] = {**defaults, **config[section]}
        drop_removed_keys(config)
        if is_flat:
            return read_recipe(config), find_facts(config)
        known = {key: value for key, value in content["facts"].items() if key not in REMOVED_FACTS}
        facts = Facts(**to_tuples(known))
        return with_facts(read_recipe(config), facts), facts
    except (OSError, ValueError, AttributeError, TypeError) as error:
        problem = f"not the config of a workdir that this version can load ({error})"
        raise ValueError(f"{file}: {problem}; expected one that pretrain wrote") from error


def write(workdir: Path, recipe: Recipe, facts: Facts) -> None:
    """Writes the recipe and the facts of a run."""
    content = {"kind": recipe.kind, "recipe": without_facts(recipe, facts), "facts": dataclasses.asdict(facts)}
    scratch = workdir / f"{CONFIG_FILE}.tmp"
    scratch.write_text(json.dumps({**content, DIGEST: _digest(content)}, indent=1))
    scratch.replace(workdir / CONFIG_FILE)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def rename_keys(config: dict) -> dict:
    """Replaces keys and values of a config from before version 0.2 with the current ones."""
    for old, new in RENAMED_KEYS.items():
        *sections, key = old.split(".")
        node = config
        for section in sections:
            node = node.get(section, {})
        if key in node:
            node[new] = node.pop(key)
    for (section, key, old), new in RENAMED_VALUES.items():
        if config.get(section, {}).get(key) == old:
            config[section][key] = new
    if "scale" in config.get("lora", {}):  # it multiplied the updates, whatever the rank
        scale = take(config, "lora.scale")
        if config["lora"]["rank"]:
            config["lora"]["alpha"] = scale * config["lora"]["rank"]
    if "history" in config and "head" not in config:
        values = {name: take(config, key) for key, name in HEAD_FEATURES.items()}
        features = [
            name for name, value in values.items() if value and not (name == "age_sex" and values["regression"])
        ]
        codes = config.pop("forecast", {}).get("codes")
        config["head"] = {"features": tuple(features), **({"forecast_codes": codes} if codes else {})}
    return config


def drop_removed_keys(config: dict) -> None:
    """Drops removed keys from a config; raises a ValueError if the run rests on removed choices."""
    removed = []
    for key in REMOVED_FACTS:
        take(config, f"head.{key}")
    for key, (current, commit) in REMOVED_KEYS.items():
        if (value := take(config, key)) not in (None, current):
            removed.append((f"{key}={value}", commit))
    for (section, key, value), commit in REMOVED_VALUES.items():
        if config.get(section, {}).get(key) == value:
            removed.append((f"{section}.{key}={value}", commit))
    if removed:
        settings = ", ".join(f"{setting} (`git checkout {commit}` has it)" for setting, commit in removed)
        raise ValueError(f"{settings}: removed, as measured no better (docs/ablations.md)")


def differences(old: tuple[Recipe, Facts], new: tuple[Recipe, Facts]) -> list[str]:
    """Lists the keys that differ between two runs but must not: `train.num_steps: 10 there, 20 now`."""
    # An empty value of a new key stands for the behaviour of runs without the key, which may therefore resume.
    old_values, new_values = (
        {key: value for key, value in flatten(to_config(*run)).items() if value not in ("", (), [])}
        for run in (old, new)
    )
    keys = sorted({*old_values, *new_values})
    return [
        f"{key}: {old_values.get(key, 'absent')} there, {new_values.get(key, 'absent')} now"
        for key in keys
        if old_values.get(key) != new_values.get(key) and not key.startswith(KEYS_ALLOWED_TO_CHANGE)
    ]


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts; keys are joined by dots."""
    flat = {}
    for key, value in tree.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


def to_tuples(value: Any) -> Any:
    """Converts the lists in nested dicts to tuples."""
    if isinstance(value, dict):
        return {key: to_tuples(item) for key, item in value.items()}
    return tuple(map(to_tuples, value)) if isinstance(value, list | tuple) else value
