"""Classification: fine-tunes to labels, binary, of several classes, or of several files (one outcome each).

python -m experiments.finetune --config=configs/classification.py --config.labels=FILE --config.pretrained=WORKDIR
"""

from behrt_jax.recipes import default


def get_config():
    return default.get_finetune_config("classification")
