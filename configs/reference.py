"""Reference: the reference design's own set of encodings, at the size of small, with BERT's share of masked codes.

python -m experiments.pretrain --config=configs/reference.py
"""

from behrt_jax.recipes import small


def get_config():
    config = small.get_config()
    config.model.update(position_encoding="learned", time_bins=53, time_bin_days=7.0)
    config.model.update(visit_bias=False, rotary="none", pooling="cls", dropout=0.1)
    config.objective.mask_rate = 0.15
    return config
