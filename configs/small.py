"""Small: 2 layers, 0.5 M parameters, for a laptop.

python -m experiments.pretrain --config=configs/small.py
"""

from behrt_jax.recipes import default


def get_config():
    config = default.get_config()
    config.model.update(embedding_dim=64, hidden_dim=128, num_layers=2, num_heads=4, feedforward_dim=512)
    return config
