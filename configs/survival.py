"""Survival: fine-tunes to the time to an event, or to the first of several, with censoring.

python -m experiments.finetune --config=configs/survival.py --config.labels=FILE --config.pretrained=WORKDIR
"""

from behrt_jax.recipes import default


def get_config():
    return default.get_finetune_config("survival")
