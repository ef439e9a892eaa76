"""LSTM: the baseline that reads the same sequences, on next visits; 2 layers of 256, 1.2 M parameters.

python -m experiments.pretrain --config=configs/lstm.py
python -m experiments.evaluate --workdir=runs/joint --compare_to=runs/lstm
"""

from behrt_jax.recipes import joint


def get_config():
    config = joint.get_config()
    config.objective.name = "next_visit"
    # Attention tells how far apart tokens lie; an LSTM is given the days since the last visit instead.
    config.model.update(encoder="lstm", hidden_dim=256, visit_bias=False, rotary="none", time_bins=28)
    config.optimizer.learning_rate = 2e-3
    config.train.num_steps = 3000
    return config
