"""Labs: the small model with measurements in, each a code with the quantile bin of its value.

python -m experiments.pretrain --config=configs/labs.py
"""

from behrt_jax.recipes import small


def get_config():
    config = small.get_config()
    config.data.codes_exclude = ("MEDS_BIRTH",)
    config.data.row_length = 512  # visits hold several times as many codes as without measurements
    config.train.batch_size = 4  # of as many tokens as eight rows of small
    return config
