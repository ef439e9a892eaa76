"""The variants of `experiments.studies.ablations`, each as overrides of a recipe."""

from ml_collections import ConfigDict

from configs import joint, reference, small

MODEL = {
    "small recipe": {},
    "attention: no fall with visit distance": {"model.visit_bias": False},
    "attention: rotary on positions": {"model.rotary": "positions"},
    "attention: not rotary": {"model.rotary": "none"},
    "positions: learned table, not rotary": {"model.rotary": "none", "model.position_encoding": "learned"},
    "positions: sinusoidal, not rotary": {"model.rotary": "none", "model.position_encoding": "sinusoidal"},
    "ages: bins of one year": {"model.age_bin_size": 1.0},
    "ages: Time2Vec": {"model.age_encoding": "time2vec"},
    "ages: sinusoidal": {"model.age_encoding": "sinusoidal"},
    "dates: Time2Vec added": {"model.date_encoding": "time2vec"},
    "days since last visit: logarithmic bins added": {"model.time_bins": 28},
    "days since last visit: 7-day bins to a year added": {"model.time_bins": 53, "model.time_bin_days": 7.0},
    "no [SEP]": {"data.use_sep": False},
    "20% hidden in training": {"objective.mask_rate": 0.2},
    "15% hidden in training": {"objective.mask_rate": 0.15},
    "reference set (configs/reference.py)": None,
    "encoder: hierarchical": {"model.encoder": "hierarchical"},
    "encoder: LSTM, 1.2 M parameters": {"model.encoder": "lstm", "model.hidden_dim": 256},
}
TRAINING = {
    "joint recipe": {},
    "learning rate 0.002": {"optimizer.learning_rate": 2e-3},
    "learning rate 0.008": {"optimizer.learning_rate": 8e-3},
    "no dropout": {"model.dropout": 0.0},
    "weight decay 0.1": {"optimizer.weight_decay": 0.1},
    "next visits weigh 0.05": {"objective.next_visit_weight": 0.05},
    "next visits weigh 0.5": {"objective.next_visit_weight": 0.5},
    "rows of 512, half as many": {"data.row_length": 512, "train.batch_size": 4},
    "rows of 128, twice as many": {"data.row_length": 128, "train.batch_size": 16},
    "spans hidden": {"objective.masking": "spans"},
    "whole visits hidden": {"objective.masking": "visits"},
    "days to the next visit left out": {"objective.time_gap_weight": 0.0},
    "events ahead too": {"objective.time_to_event_weight": 1.0},
    "masked codes alone": {"objective.name": "mlm"},
    "next visits alone": {"objective.name": "next_visit"},
    "next visits alone, random cut": {"objective.name": "next_visit", "objective.history": "random_cut"},
}
VARIANTS = {**MODEL, **TRAINING}
GROUPS = {"model": MODEL, "training": TRAINING}
POOLINGS = ("cls", "mean", "max")


def recipe(name: str, seed: int, num_steps: int) -> ConfigDict:
    """Returns the config of a variant."""
    overrides = VARIANTS[name]
    recipe_of = reference if overrides is None else joint if name in TRAINING else small
    config = recipe_of.get_config()
    config.update_from_flattened_dict({"seed": seed, "train.num_steps": num_steps, **(overrides or {})})
    return config
