"""Events: the small model on when each code first comes, death among them (MOTOR), to begin with where labels are few.

python -m experiments.pretrain --config=configs/events.py
"""

from behrt_jax.recipes import small


def get_config():
    config = small.get_config()
    config.data.visits = "day"  # none goes on while others come, which it would tell what lies ahead
    config.objective.name = "time_to_event"
    config.objective.targets = (*config.objective.targets, "MEDS_DEATH")
    config.model.update(causal=True, dropout=0.1)  # heads for outcomes read the last token, as the rates did
    config.objective.queries_per_row = 64  # of 256 tokens nearly all: more to learn from at each step
    config.objective.event_edges = (30.0, 90.0, 365.0, 1096.0, 3653.0)  # days
    config.objective.update(first_event_only=True, query_times="anytime")  # as heads for outcomes ask
    config.train.update(num_steps=1200, evaluate_every=200)
    return config
