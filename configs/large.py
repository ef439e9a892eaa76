"""Large."""

from configs import default


def get_config():
    config = default.get_config()
    config.model.update(embedding_dim=256, hidden_dim=512, num_layers=6, num_heads=8, feedforward_dim=1024)
    return config
