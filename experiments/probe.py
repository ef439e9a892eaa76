"""Probes a frozen encoder: regressions on its embeddings of labelled histories, from few labelled patients to all.

python -m experiments.probe --workdir=DIR --labels=FILE [--sizes=16,64,256,all] [--draws=5] [--data=DIR]

As in EHRSHOT (Wornow et al. 2023): logistic or Cox regression with a ridge chosen on tuning, beside the same on counts
of codes. For each size, `--draws` samples of patients are drawn.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import scipy.sparse
from absl import flags
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from behrt_jax import cox, survival_metrics, workdir
from behrt_jax.data import dataset, events, sequences
from behrt_jax.data import labels as label_files
from behrt_jax.data.config import DataConfig
from behrt_jax.data.history import static_tokens
from behrt_jax.data.next_visits import visit_codes
from behrt_jax.data.prepare import prepare
from experiments import command, draws, labelled, outcome_data
from experiments.embeddings import embed

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
METRICS = {"binary": "AUROC", "survival": "C-index"}
MODELS = {"embeddings": "frozen BEHRT", "counts": "counts of codes"}


class Split(NamedTuple):
    """What regressions are fitted to and scored on: (M, F) inputs of each kind, and the labels."""

    inputs: dict[str, np.ndarray]
    labels: label_files.Labels


def count_codes(config: ConfigDict, histories: dataset.Patients, vocab_size: int) -> np.ndarray:
    """Returns the (M, V) log counts of codes in histories, and of static tokens."""
    index = sequences.index_visits(histories, config.data.row_length, config.data.separators)
    codes = visit_codes(histories, index, vocab_size).astype(np.float32)
    sides = np.ones(codes.shape[0], np.float32), index.owners, np.arange(codes.shape[0] + 1)
    owners = scipy.sparse.csr_array(sides, shape=(codes.shape[0], len(histories)))
    return (owners.T.tocsr() @ codes).log1p().toarray() + static_tokens(histories, vocab_size).toarray()


def fit_and_score(splits: dict[str, Split], kind: str, rows: np.ndarray) -> float:
    """Fits a regression to some rows of train, its strength chosen on tuning; returns its metric on held_out."""
    train, tuning, held_out = (splits[name] for name in events.SPLITS)
    mean, deviation = (statistic(train.inputs[kind][rows], axis=0) for statistic in (np.mean, np.std))
    kept = deviation > 0

    def scaled(split):
        return (split.inputs[kind][:, kept] - mean[kept]) / deviation[kept]

    fits = [_fit(scaled(train)[rows], train.labels.take(rows), strength) for strength in STRENGTHS]
    best = max(fits, key=lambda fit: _score(fit(scaled(tuning)), tuning.labels))
    return _score(best(scaled(held_out)), held_out.labels)


def _fit(inputs: np.ndarray, labels: label_files.Labels, strength: float):
    if labels.kind == "survival":
        weights = cox.fit_ridge(inputs, labels.days, labels.events > 0, 1 / strength)
        return lambda inputs: inputs @ weights
    return LogisticRegression(C=strength, max_iter=2000).fit(inputs, labels.values[:, 0]).decision_function


def _score(scores: np.ndarray, labels: label_files.Labels) -> float:
    if labels.kind == "survival":
        return survival_metrics.concordance(labels.events > 0, labels.days, scores)
    return float(roc_auc_score(labels.values[:, 0], scores))


def read_sizes(words: list[str]) -> list[int]:
    """Returns the numbers of patients, ascending; `all` is a very large one."""
    wrong = [word for word in words if word != "all" and not (word.isdecimal() and int(word) > 1)]
    if wrong:
        raise ValueError(f"--sizes: found {', '.join(wrong)}; expected numbers of patients above 1, or all")
    return sorted({np.iinfo(int).max if word == "all" else int(word) for word in words})


def main() -> None:
    """Runs the command."""
    found, sizes = workdir.load(Path(FLAGS.workdir)), read_sizes(FLAGS.sizes)
    config = found.config
    with config.unlocked():
        # What pre-training never saw stays out.
        config.history = ConfigDict({"include_at": False, "mark": False, "age_and_sex": False})
        config.data.path = FLAGS.data or config.data.path
    config.lock()
    labels = label_files.read_labels(FLAGS.labels, print)
    if labels.kind not in METRICS:
        raise ValueError(f"--labels: found {labels.kind} labels; expected one binary label, or times to an event")
    prepared = prepare(DataConfig(**config.data), found.vocabulary, progress=print)
    if FLAGS.data:
        print(labelled.describe_coverage(prepared.report, "all"))
    labels = outcome_data.match(labels, outcome_data.read_lives(config.data.path), print)
    splits = {}
    for name in events.SPLITS:
        wanted = (dataset.read(prepared.folder, name), labels, found.vocabulary.tokens)
        part = labelled.find_histories(config, *wanted, name, print)
        label_files.check_learnable(part.labels, name)
        counts = count_codes(config, part.histories, len(found.vocabulary))
        pooled = embed(config, found.model, found.params, part.rows)["mean"]
        splits[name] = Split({"embeddings": pooled, "counts": counts}, part.labels)
    rows = []
    with tqdm(total=len(sizes) * FLAGS.draws, unit="draw", desc="probing") as bar:
        for size in sizes:
            chosen = [draws.draw_rows(splits["train"].labels, size, seed) for seed in range(FLAGS.draws)]
            number = len(np.unique(splits["train"].labels.subject_ids[chosen[0]]))
            for draw in chosen[: 1 if len(chosen[0]) == len(splits["train"].labels) else None]:
                rows += [{"patients": number, "model": m, "score": fit_and_score(splits, m, draw)} for m in MODELS]
                bar.update()
    table = pl.DataFrame(rows).group_by("patients", "model", maintain_order=True)
    print(f"held out: {METRICS[labels.kind]}, mean [lowest, highest] of {FLAGS.draws} draws of patients")
    for (number, model), part in table:
        scores = part["score"]
        print(f"{number:>8,}  {MODELS[str(model)]:<16} {scores.mean():.3f} [{scores.min():.3f}, {scores.max():.3f}]")
    if FLAGS.output:
        pl.DataFrame(rows).write_parquet(FLAGS.output)


if __name__ == "__main__":
    FLAGS = flags.FLAGS
    flags.DEFINE_string("workdir", None, "What experiments.pretrain wrote.", required=True)
    flags.DEFINE_list("labels", None, "A file of labels.", required=True)
    flags.DEFINE_list("sizes", ["16", "64", "256", "all"], "Numbers of labelled patients.")
    flags.DEFINE_integer("draws", 5, "Samples of patients of each size.", lower_bound=1)
    flags.DEFINE_string("data", None, "Another MEDS data set than the run's own.")
    flags.DEFINE_string("output", None, "A Parquet file for the scores of every draw.")
    command.run(main)
