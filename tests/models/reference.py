"""The forward pass in plain numpy and float64, written from the papers and not from the modules.

Patients are taken out of their rows and computed alone, one query, head or token at a time: nothing is masked, as what
may not be seen is not there. A patient is a dict of the columns of its own tokens.
"""

import numpy as np


def layer_norm(x, weights):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6) * weights["scale"] + weights["bias"]


def dense(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0.0)


def gelu(x):
    """Hendrycks and Gimpel (2016), by the tangent."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(scores):
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


# The embeddings, one token at a time.
def sinusoids(value, dim):
    """Vaswani et al. (2017), section 3.5."""
    angles = [value / 10_000 ** ((feature - feature % 2) / dim) for feature in range(dim)]
    return np.array([np.cos(angle) if feature % 2 else np.sin(angle) for feature, angle in enumerate(angles)])


def age_row(age, config):
    """Row 0 is the age unknown; the last is that of `max_age` and older."""
    if np.isnan(age):
        return 0
    return 1 + int(min(max(age, 0), config.max_age) // config.age_bin_size)


def time_row(days, config):
    days = max(days, 0.0)
    bins = days // config.time_bin_days if config.time_bin_days else np.floor(2 * np.log2(1 + days))
    return int(min(bins, config.time_bins - 1))


def modulated(x, value, weights):
    """Perez et al. (2018), of how far the value lies between two of some knots; those beyond the last count as it."""
    knots = [-10, -6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6, 10]
    pairs = zip(knots[:-1], knots[1:], strict=True)
    places = np.array([min(max((value - low) / (high - low), 0), 1) for low, high in pairs])
    scale, shift = np.split(dense(gelu(dense(places, weights["input"])), weights["output"]), 2)
    return x * (1 + scale) + shift


def embed(token, weights, config):
    x = weights["codes"]["embedding"][token["codes"]]
    if config.value_encoding == "film" and not np.isnan(token["values"]):
        x = modulated(x, token["values"], weights["values"])
    x = x + weights["visits"]["table"]["embedding"][min(token["visit_ids"], config.max_visits - 1)]
    x = x + weights["ages"]["table"]["embedding"][age_row(token["ages"], config)]
    if config.position_encoding == "learned":
        x = x + weights["positions"]["table"]["embedding"][min(token["positions"], config.max_positions - 1)]
    elif config.position_encoding == "sinusoidal":
        x = x + weights["position_scale"] * sinusoids(token["positions"], config.embedding_dim)
    if config.time_bins:
        x = x + weights["times"]["table"]["embedding"][time_row(token["time_deltas"], config)]
    return dense(layer_norm(x, weights["norm"]), weights["projection"])


# The encoders, one patient at a time: x is (n, D).
def slopes(config):
    """From 4 down by equal ratios, which would reach 4 / 256 at the head after the last; the last sees all alike."""
    heads = config.num_heads
    return [4 / 256 ** (head / heads) if config.visit_bias and head < heads - 1 else 0.0 for head in range(heads)]


def turned(x, place):
    """Su et al. (2021): pairs of features as complex numbers, turned by an angle that grows with the place."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * place * 100.0 ** (-np.arange(half) / half))
    product = (x[:half] + 1j * x[half:]) * turn
    return np.concatenate([product.real, product.imag])


def rotary_places(patient, config):
    """Positions, or months of age; months of the date where the age is unknown, and 0 where both are."""
    years = np.where(np.isnan(patient["ages"]), patient["dates"], patient["ages"])
    months = 12 * np.nan_to_num(years)
    return {"none": np.zeros(len(months)), "positions": patient["positions"], "ages": months}[config.rotary]


def attention(x, weights, patient, config):
    """Vaswani et al. (2017), section 3.2, one query and head at a time."""
    count, width = x.shape
    size = width // config.num_heads
    query, key, value = np.split(dense(x, weights["qkv"]), 3, axis=-1)
    visits, places = patient["visit_ids"].astype(float), rotary_places(patient, config)
    mixed = np.zeros((count, width))
    for asking in range(count):
        seen = [other for other in range(count) if not config.causal or visits[other] <= visits[asking]]
        for head, slope in enumerate(slopes(config)):
            part = slice(head * size, (head + 1) * size)
            asked = turned(query[asking, part], places[asking])
            scores = [asked @ turned(key[other, part], places[other]) / np.sqrt(size) for other in seen]
            shares = softmax(np.array(scores) - slope * abs(visits[seen] - visits[asking]))
            mixed[asking, part] = shares @ value[seen, part]
    return dense(mixed, weights["output"])


def feedforward(x, weights):
    return dense(gelu(dense(x, weights["input"])), weights["output"])


def transformer(x, weights, patient, config):
    """Pre-LN (Xiong et al. 2020)."""
    for layer in range(config.num_layers):
        block = weights[f"block_{layer}"]
        x = x + attention(layer_norm(x, block["attention_norm"]), block["attention"], patient, config)
        x = x + feedforward(layer_norm(x, block["feedforward_norm"]), block["feedforward"])
    return layer_norm(x, weights["norm"])


def lstm(x, weights, patient, config):
    """Hochreiter and Schmidhuber (1997) with a forget gate, one token at a time."""
    for layer in range(config.num_layers):
        gates = weights[f"layer_{layer}"]
        cell, state, states = 0.0, np.zeros(config.hidden_dim), []
        for token in x:
            put, forget, new, out = (
                dense(token, gates[f"i{name}"]) + dense(state, gates[f"h{name}"]) for name in "ifgo"
            )
            cell = sigmoid(forget) * cell + sigmoid(put) * np.tanh(new)
            state = sigmoid(out) * np.tanh(cell)
            states.append(state)
        x = np.stack(states)
    return layer_norm(x, weights["norm"])


ENCODERS = {"transformer": transformer, "lstm": lstm}


# Batches: what a model gives for packed rows.
def patients(batch):
    """Yields row, number and places in the row of each patient."""
    for row, numbers in enumerate(batch["patient_ids"]):
        for number in np.unique(numbers[numbers > 0]):
            yield row, number, np.flatnonzero(numbers == number)


def encode(weights, config, batch):
    """Returns (B, L, D) hidden states of the `BEHRT` whose weights are given, NaN at padding."""
    hidden = np.full((*batch["codes"].shape, config.hidden_dim), np.nan)
    for row, _, places in patients(batch):
        patient = {name: batch[name][row, places] for name in ("codes", "ages", "visit_ids", "positions")}
        patient |= {name: batch[name][row, places].astype(float) for name in ("ages", "time_deltas", "dates", "values")}
        tokens = [{name: values[place] for name, values in patient.items()} for place in range(len(places))]
        x = np.stack([embed(token, weights["embedding"], config) for token in tokens])
        hidden[row, places] = ENCODERS[config.encoder](x, weights["encoder"], patient, config)
    return hidden


def pool(hidden, batch, pooling, num_patients, weights):
    """Returns (B, P, D) patient embeddings, zeros where a row has no such patient."""
    pooled = np.zeros((len(hidden), num_patients, hidden.shape[-1]))
    for row, number, places in patients(batch):
        states = hidden[row, places]
        if pooling == "attention":
            pooled[row, number - 1] = softmax(dense(states, weights["scores"])[:, 0]) @ states
        else:
            simple = {"cls": states[0], "last": states[-1], "mean": states.mean(axis=0), "max": states.max(axis=0)}
            pooled[row, number - 1] = simple[pooling]
    return pooled


def score_codes(states, weights, table):
    """Devlin et al. (2019): dense, GELU, normalisation, and the scores of the code table with a bias."""
    return layer_norm(gelu(dense(states, weights["transform"])), weights["norm"]) @ table.T + weights["bias"]
