"""Large: 6 layers, 13.1 M parameters, meant for an A40 or larger; what it costs there is not measured yet.

python -m experiments.pretrain --config=configs/large.py --config.data.path=DIR --workdir=runs/large
"""

from behrt_jax.recipes import default


def get_config():
    config = default.get_config()
    config.data.row_length = 512
    config.model.update(embedding_dim=256, hidden_dim=512, num_layers=6, num_heads=8, feedforward_dim=1024)
    config.model.dropout = 0.1
    config.optimizer.learning_rate = 5e-4
    config.train.update(num_steps=100_000, batch_size=64, evaluate_every=2000, log_every=100)
    config.evaluation.batch_size = 64
    return config
