"""The one place of every default; recipes set what differs."""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """Returns the defaults, locked: a key that is not here is an error."""
    sections = {"data": _data(), "model": _model(), "objective": _objective()}
    sections |= {"optimizer": _optimizer(), "train": _train(), "evaluation": _evaluation()}
    # Where the code table begins: "" at random, or a Parquet table (code, embedding).
    return config_dict.ConfigDict({"seed": 0, "code_init": "", **sections}).lock()


def get_finetune_config(outcome: str) -> config_dict.ConfigDict:
    """Returns the defaults of fine-tuning to a `classification` or to `survival`, locked."""
    config = config_dict.ConfigDict({"seed": 0})
    config.labels = ""  # a file of labels, or several, separated by commas: one binary outcome each
    config.pretrained = ""  # the workdir of a pre-trained run, whose data and model keys are taken; "": from scratch
    config.add_codes = False  # whether codes of train that the pre-trained vocabulary lacks get rows of their own
    config.head = config_dict.ConfigDict()
    # What the head reads beside the embedding, at the prediction time: age_sex; or regression, on counts of codes, age
    # and sex.
    config.head.features = ("age_sex",)
    config.freeze = "none"  # or: encoder, so that only the head is trained
    config.layer_decay = 0.8  # factor of the learning rate from each layer to the one below it
    config.lora = config_dict.ConfigDict()
    config.lora.rank = 0  # above 0: low-rank changes of the blocks' layers, and the head
    config.lora.alpha = 8.0  # these changes are multiplied by alpha / rank
    config.history = config_dict.ConfigDict()
    config.history.include_at = False  # whether events at the very prediction time are known
    config.history.prediction_token = True  # a token at the prediction time tells how long ago the last visit was
    config.temporal_split = config_dict.ConfigDict()
    config.temporal_split.cutoff = ""  # a date such as 2015-01-01: training is before it, the test after; "": off
    config.temporal_split.outcome_window_days = 0.0  # in classification: how long after that time outcomes count
    config.data, config.model = _data(), _model()
    config.model.dropout = 0.1
    config[outcome] = {"classification": _classification, "survival": _survival}[outcome]()
    config.optimizer, config.train = _optimizer(), _train()
    config.evaluation = config_dict.ConfigDict({"batch_size": 32})
    if outcome == "classification":
        config.evaluation.calibration = "temperature"  # fitted on tuning; or: isotonic, none
    else:
        config.evaluation.horizons = (30.0, 90.0, 365.0, 1825.0)  # days ahead for which risks are told
    config.optimizer.update(learning_rate=1e-3, warmup_share=0.1)
    config.train.update(num_steps=600, evaluate_every=50, patience=4)
    return config.lock()


def _classification() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.class_weights = "none"  # or: balanced
    config.focal_gamma = 0.0  # above 0: focal loss
    return config


def _survival() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.loss = "piecewise"  # rates in bins of time; or: discrete hazards, cox
    config.num_bins = 16
    config.edges = ()  # the last day of each bin; (): by quantiles of the events of train
    return config


def _data() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.path = "data/synthea-1151"  # any MEDS data set
    config.prepared_dir = "prepared"  # prepared copies, one folder a data set and data config
    config.visits = "auto"  # a visit column that names any, else days; or: day, gap, a column's name
    config.events_without_visit = "group_by_day"  # events that name no visit: a visit a day; or: leave_out
    config.visit_gap_hours = 24.0
    config.codes_include = ("*",)  # codes or shell patterns; brackets match themselves too
    # Measurements are many and say little without their values; without them a row holds many more visits.
    config.codes_exclude = (
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
    config.unique_codes_in_visit = True
    config.min_patients = 5  # codes of fewer train patients become [UNK], or broader codes by data.roll_up
    # How, in this order: parents (parent_codes of metadata/codes.parquet), icd (the category of an ICD code), prefix
    # (the code without its last part), or a table (.csv, .parquet) with the columns code and parent. (): [UNK].
    config.roll_up = ()
    config.value_bins = 10  # quantile bins for codes that carry numbers; below 2: none
    config.value_encoding = "bins"  # in the token; or: continuous, a scaled number beside it, none
    config.unit_table = ""  # a table (.csv, .parquet) of units to convert: code, unit, factor, offset, new_unit
    config.text_values = False  # whether a text of min_patients train patients is part of its code's token
    # Significant digits of their edges, each bin then of 10 patients or more, as publishing asks; 0: exact quantiles.
    config.value_digits = 2
    config.row_length = 256  # tokens a row, and the longest window of one patient
    config.use_sep = True  # [SEP] ends each visit
    config.sex_codes = ()  # such as ("SEX//2=F", "SEX//1=M"), beside common forms (GENDER//F, Gender/FEMALE, SEX//8532)
    return config


def _model() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.vocab_size = config_dict.placeholder(int)  # set from the fitted vocabulary
    config.embedding_dim = 64
    config.hidden_dim = 128
    config.num_layers = 2
    config.num_heads = 4
    config.feedforward_dim = 512
    config.position_encoding = "none"  # or: learned, sinusoidal; rotary attention does better (docs/ablations.md)
    config.max_positions = 256  # rows of the learned table; later positions share the last
    config.max_visits = 512
    config.max_age = 100
    config.age_bin_size = 5.0
    config.time_bins = 0  # of days since the previous visit, such as 28; 0: left out
    config.time_bin_days = 0.0  # days a bin; 0: two bins a doubling
    config.visit_bias = True  # attention falls with the number of visits between; see docs/choices.md
    config.rotary = "ages"  # attention tells how long two tokens lie apart; or: positions, none
    config.causal = False  # True: a token sees only what was recorded no later than itself
    config.encoder = "transformer"  # or: lstm
    config.pooling = "mean"  # from tokens to the patient, in heads for patients; or: cls, last, max, attention
    config.dropout = 0.0
    config.value_encoding = "none"  # or: film, a code's embedding is scaled and shifted by its continuous value
    config.dtype = "float32"  # of matrix products; or: bfloat16, auto (bfloat16 where the device multiplies it)
    return config


def _objective() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.name = "mlm"  # masked codes; or: next_visit, time_to_event, joint
    config.mlm_weight = 1.0  # in joint; 0 leaves an objective out
    config.next_visit_weight = 0.2
    config.time_to_event_weight = 0.0
    config.mask_rate = 0.3  # of codes masked in training; see docs/choices.md
    config.value_weight = 0.0  # of the values of masked codes, beside the codes; 0: not predicted
    config.mask_values = True  # whether codes with a value (LAB//51087//Q7) are hidden too
    # What next visits and events are about, and of how many train patients at least.
    config.targets = ("CONDITION//*", "DIAGNOSIS//*", "PROCEDURE//*", "MEDICATION//*")
    config.min_patients = 5
    config.history = "every_visit"  # each predicts the next, causally; or: random_cut, both ways before a cut
    config.known_time_share = 0.0  # of next visits in training whose start the head is given; 0: never
    config.time_gap_weight = 0.1  # of the time to the next visit, beside its codes
    config.queries_per_row = 16  # visits a row after which events are predicted
    config.first_event_only = False  # each code's first event alone; what a patient had before teaches nothing then
    config.query_times = "after_visits"  # or: anytime, at query tokens in pauses too (time_to_event alone)
    config.event_edges = ()  # days that part the bins of rates; (): eight bins by quantiles of train
    return config


def _optimizer() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.learning_rate = 4e-3
    config.warmup_share = 0.05  # of train.num_steps
    config.weight_decay = 0.01
    config.b2 = 0.999
    config.clip_norm = 1.0
    return config


def _train() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.num_steps = 4000
    config.batch_size = 8
    config.accumulate_steps = 1
    config.evaluate_every = 500
    config.log_every = 25
    config.max_patients = 0  # of the train split, for learning curves; 0: all
    config.patience = 0  # evaluations without a better tuning loss before the run stops; 0: never
    return config


def _evaluation() -> config_dict.ConfigDict:
    config = config_dict.ConfigDict()
    config.mask_rate = 0.15  # of codes masked in evaluation, whatever training masks
    config.batch_size = 32
    config.max_patients = 10_000  # of a split; of a larger one, those with the lowest hash of their id
    config.num_mask_samples = 4  # times each patient is masked anew in the final evaluation
    return config
