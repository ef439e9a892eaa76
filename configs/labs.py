"""Labs: the small model with measurements in, which reads their values (FiLM) and predicts those of masked codes.

python -m experiments.pretrain --config=configs/labs.py
"""

from behrt_jax.recipes import small


def get_config():
    config = small.get_config()
    config.data.codes_exclude = ("MEDS_BIRTH",)
    config.data.value_encoding, config.model.value_encoding = "continuous", "film"
    config.data.row_length = 512  # visits hold several times as many codes as without measurements
    config.train.batch_size = 4  # of as many tokens as eight rows of small
    config.objective.value_weight = 1.0
    return config
