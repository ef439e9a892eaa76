"""Medium."""

from configs import default


def get_config():
    config = default.get_config()
    config.model.update(embedding_dim=128, hidden_dim=256, num_layers=4, num_heads=8, feedforward_dim=512)
    return config
