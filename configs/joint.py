"""Joint: the small model on masked codes and next visits together, on the reference's next visits.

python -m experiments.pretrain --config=configs/joint.py

A step takes twice that of masked codes alone. Events that name no visit are left out, as in the reference protocol
(docs/results.md): what belongs to no visit is no visit to predict.
"""

from behrt_jax.recipes import small


def get_config():
    config = small.get_config()
    config.objective.name = "joint"
    config.data.events_without_visit = "leave_out"
    config.objective.known_time_share = 0.5  # so that it predicts with and without knowing when the visit begins
    config.model.dropout = 0.1  # next visits overfit without; see docs/results.md
    return config
