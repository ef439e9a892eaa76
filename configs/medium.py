"""Medium: 4 layers, 2.3 M parameters, for a workstation or one GPU; five times the cost of small a token.

python -m experiments.pretrain --config=configs/medium.py --config.data.path=DIR

The number of steps is for about a thousand patients. For more, raise train.num_steps; experiments.plan says how many
one pass over the data takes.
"""

from behrt_jax.recipes import default


def get_config():
    config = default.get_config()
    config.model.update(embedding_dim=128, hidden_dim=256, num_layers=4, num_heads=8, feedforward_dim=512)
    config.optimizer.learning_rate = 2e-3
    return config
