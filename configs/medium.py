"""Medium: 4 layers, 2.3 M parameters, for a workstation or one GPU; five times the cost of small a token.

python -m experiments.pretrain --config=configs/medium.py --config.data.path=DIR
"""

from behrt_jax.recipes import default


def get_config():
    config = default.get_config()
    config.model.update(embedding_dim=128, hidden_dim=256, num_layers=4, num_heads=8, feedforward_dim=512)
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 1e-3
    config.train.update(num_steps=20_000, batch_size=32, evaluate_every=1000)
    return config
