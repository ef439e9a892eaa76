"""The one place of every default; the recipes of the tiers set the sizes and the length of the run."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the defaults, locked: a key that is not here is an error."""
    config = config_dict.ConfigDict()
    config.seed = 0

    config.data = config_dict.ConfigDict()
    config.data.path = "data/synthea-1151"  # any MEDS data set
    config.data.prepared_dir = "prepared"  # prepared copies, one folder a data set and data config
    config.data.visits = "auto"  # a visit column where there is one, else days; or: day, gap, a column's name
    config.data.events_without_visit = "visits"  # a null in the visit column: a visit a day; or: leave_out
    config.data.visit_gap_hours = 24.0
    config.data.codes_include = ("*",)
    # Measurements are many and say little without their values; without them a row holds many more visits.
    config.data.codes_exclude = (
        "MEDS_BIRTH",
        "OBSERVATION//*",
        "LAB//*",
        "VITAL*",
        "MEASUREMENT//*",
        "SUBJECT_WEIGHT_AT_INFUSION//*",
        "SUBJECT_FLUID_OUTPUT//*",
        "Blood Pressure*",
        "Weight (*",
        "Height (*",
        "BMI (*",
        "eGFR*",
    )
    config.data.unique_codes_in_visit = True
    config.data.min_patients = 5  # codes of fewer train patients become [UNK]
    config.data.value_bins = 10  # quantile bins for codes that carry numbers; below 2: none
    config.data.row_length = 256  # tokens a row, and the longest window of one patient
    config.data.separators = True  # [SEP] ends each visit

    config.model = config_dict.ConfigDict()
    config.model.vocab_size = config_dict.placeholder(int)  # set from the fitted vocabulary
    config.model.embedding_dim = 64
    config.model.hidden_dim = 128
    config.model.num_layers = 2
    config.model.num_heads = 4
    config.model.feedforward_dim = 512
    config.model.position_encoding = "none"  # or: learned, sinusoidal; rotary attention does better (docs/ablations.md)
    config.model.max_positions = 256  # rows of the learned table; later positions share the last
    config.model.max_visits = 512
    config.model.max_age = 100
    config.model.age_bin_size = 5.0
    config.model.age_encoding = "bins"  # or: time2vec, sinusoidal
    config.model.date_encoding = "none"  # or: time2vec; leave it out where dates were shifted to hide them
    config.model.time_bins = 0  # of days since the previous visit, such as 28; 0: left out
    config.model.time_bin_days = 0.0  # days a bin; 0: two bins a doubling
    config.model.visit_bias = True  # attention falls with the number of visits between; see docs/choices.md
    config.model.rotary = "ages"  # attention tells how long two tokens lie apart; or: positions, none
    config.model.causal = False  # True: a visit sees only itself and the past
    config.model.encoder = "transformer"  # or: hierarchical (visit vectors, then a Transformer over visits), lstm
    config.model.pooling = "mean"  # from tokens to the patient, in heads for patients; or: cls, max, attention
    config.model.dropout = 0.0
    config.model.dtype = "float32"  # of matrix products; bfloat16 is for GPUs

    config.objective = config_dict.ConfigDict()
    config.objective.name = "mlm"  # masked codes; or: next_visit, time_to_event, joint
    config.objective.mlm_weight = 1.0  # in joint; 0 leaves an objective out
    config.objective.next_visit_weight = 0.2
    config.objective.time_to_event_weight = 0.0
    config.objective.mask_rate = 0.3  # of codes hidden in training; see docs/choices.md
    config.objective.masking = "codes"  # each on its own; or: spans, visits
    config.objective.mask_values = True  # whether codes with a value (LAB//51087//Q7) are hidden too
    # What next visits and events are about, and of how many train patients at least.
    config.objective.targets = ("CONDITION//*", "DIAGNOSIS//*", "PROCEDURE//*", "MEDICATION//*")
    config.objective.min_patients = 5
    config.objective.history = "every_visit"  # each predicts the next, causally; or: random_cut, both ways before a cut
    config.objective.days_weight = 0.1  # of the time to the next visit, beside its codes
    config.objective.event_visits = 16  # visits a row after which events are predicted
    config.objective.event_edges = ()  # days that part the bins of rates; (): eight bins by quantiles of train

    config.optimizer = config_dict.ConfigDict()
    config.optimizer.learning_rate = 4e-3
    config.optimizer.warmup_share = 0.05  # of train.num_steps
    config.optimizer.weight_decay = 0.01
    config.optimizer.b2 = 0.999
    config.optimizer.clip_norm = 1.0

    config.train = config_dict.ConfigDict()
    config.train.num_steps = 4000
    config.train.batch_size = 8
    config.train.accumulate_steps = 1
    config.train.evaluate_every = 500
    config.train.log_every = 25
    config.train.max_patients = 0  # of the train split, for learning curves; 0: all
    config.train.patience = 0  # evaluations without a better tuning loss before the run stops; 0: never

    config.evaluation = config_dict.ConfigDict()
    config.evaluation.mask_rate = 0.15  # of codes hidden in evaluation, whatever training hides
    config.evaluation.batch_size = 32
    config.evaluation.max_patients = 10_000  # of a split; of a larger one, those with the lowest hash of their id
    config.evaluation.mask_draws = 4  # times each patient is masked anew in the final evaluation
    return config.lock()
