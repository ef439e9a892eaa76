"""Measures of embeddings: worked cases, other implementations, and planted truth."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import fisher_exact
from sklearn.metrics import silhouette_score

from behrt_jax.metrics import embeddings as quality


def planted(number: int, seed: int, apart: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=number)
    return rng.normal(size=(number, 6)) + apart * np.eye(6)[labels], labels


def test_directions_are_unit_vectors_around_the_mean_of_train():
    train, _ = planted(50, 0)
    others, _ = planted(20, 1)
    found = quality.directions(train)(others)
    expected = (others - train.mean(axis=0)) / np.linalg.norm(others - train.mean(axis=0), axis=1, keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(quality.directions(train, centre=False)(others), axis=1), 1, atol=1e-12)


def test_exclusive_groups_are_one_disease_none_or_several():
    has = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], bool)
    assert quality.exclusive_groups(has).tolist() == [
        quality.NO_DISEASE,
        1,
        quality.SEVERAL,
        2,
    ]


def test_silhouette_is_that_of_its_definition():
    embeddings, labels = planted(40, 0, apart=2.0)
    found, others = quality.cluster_scores(embeddings, labels)
    distances = cdist(embeddings, embeddings)
    for row in range(40):
        to = {each: distances[row, (labels == each) & (np.arange(40) != row)].mean() for each in range(3)}
        inside, outside = to.pop(labels[row]), min(to[each] for each in to)
        assert found[row] == pytest.approx((outside - inside) / max(inside, outside))
    shuffled, worse = quality.cluster_scores(embeddings, np.random.default_rng(0).permutation(labels))
    assert found.mean() > shuffled.mean() + 0.1
    assert others["davies_bouldin"] < worse["davies_bouldin"]
    assert others["calinski_harabasz"] > worse["calinski_harabasz"]


def test_resampled_silhouettes_are_those_of_rows_without_copies_as_neighbours(monkeypatch):
    """Against the definition, row by row; drawn once each, against scikit-learn; alone in a group, 0."""
    embeddings, labels = planted(30, 0, apart=2.0)
    rng = np.random.default_rng(0)
    weights = np.vstack([np.ones(30, int), rng.multinomial(30, np.full(30, 1 / 30), 5), labels == 0, labels > 0])
    weights[3] = np.where(labels == 2, 0, weights[3])
    alone = np.flatnonzero(labels == 1)
    weights[4, alone], weights[4, alone[0]] = 0, 3  # three copies of one patient are one patient
    found = quality.resampled_silhouettes(embeddings, labels, weights)
    distances = cdist(embeddings, embeddings)
    for given, value in zip(weights, found, strict=True):
        drawn, scores = np.repeat(np.arange(30), given), []
        for row in drawn:
            others = drawn[drawn != row]
            to = {each: distances[row, others[labels[others] == each]] for each in np.unique(labels[drawn])}
            inside = to.pop(labels[row])
            outside = min((each.mean() for each in to.values()), default=np.nan)
            scores.append((outside - inside.mean()) / max(inside.mean(), outside) if len(inside) else 0.0)
        assert value == pytest.approx(np.mean(scores), nan_ok=True)
    assert found[0] == pytest.approx(silhouette_score(embeddings, labels)) and np.isnan(found[6])
    monkeypatch.setattr(quality, "CELLS", 500)
    np.testing.assert_allclose(quality.resampled_silhouettes(embeddings, labels, weights), found)


@pytest.mark.slow
def test_intervals_of_the_silhouette_cover_the_truth():
    """Of 60 patients, one in five in the second group; fixed silhouettes covered the truth in 59 of 100."""
    rng = np.random.default_rng(0)

    def draw(number):
        labels = (rng.random(number) < 0.2).astype(int)
        return rng.normal(size=(number, 4)) + 2 * np.eye(4)[labels], labels

    truth = np.mean([silhouette_score(*draw(2500)) for _ in range(2)])
    values, spreads, fixed, covers = [], [], [], []
    for _ in range(150):
        embeddings, labels = draw(60)
        weights = rng.multinomial(60, np.full(60, 1 / 60), 200)
        replicates = quality.resampled_silhouettes(embeddings, labels, weights)
        low, high = np.nanquantile(replicates, [0.025, 0.975])
        covers.append(low <= truth <= high)
        each = quality.cluster_scores(embeddings, labels)[0]
        values.append(each.mean())
        spreads.append(np.nanstd(replicates))
        fixed.append((weights @ each / 60).std())
    assert 0.88 <= np.mean(covers) <= 0.99
    assert np.mean(spreads) == pytest.approx(np.std(values), rel=0.15)
    assert np.mean(fixed) < 0.6 * np.std(values)


def test_retrieval_by_hand():
    own = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 1]], bool)
    gallery = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]], bool)
    near = np.array([[0, 1, 2], [0, 1, 2], [1, 3, 2]])
    found = quality.retrieval(near, own, gallery)
    assert found.patients.tolist() == [0, 2]  # the patient without a disease is no query
    np.testing.assert_allclose(found.values["precision"], [2 / 3, 1 / 3])
    np.testing.assert_allclose(found.values["shared"], [(0.5 + 0 + 1) / 3, 1 / 3])
    np.testing.assert_allclose(found.values["jaccard"], [(0.5 + 0 + 1) / 3, 1 / 3])


def test_retrieval_in_parts_is_the_same_and_everyone_is_chance(monkeypatch):
    rng = np.random.default_rng(0)
    own, gallery = rng.random((60, 4)) < 0.3, rng.random((500, 4)) < 0.3
    everyone = quality.retrieval(np.tile(np.arange(500), (60, 1)), own, gallery)
    drawn = quality.retrieval(rng.integers(500, size=(60, 2000)), own, gallery)
    for name, values in everyone.values.items():
        np.testing.assert_allclose(values, drawn.values[name], atol=0.05)
    monkeypatch.setattr(quality, "CELLS", 4000)
    parts = quality.retrieval(np.tile(np.arange(500), (60, 1)), own, gallery)
    np.testing.assert_array_equal(parts.values["jaccard"], everyone.values["jaccard"])


def test_a_probe_reads_off_what_is_there_and_nothing_else():
    inputs, has = {}, {}
    for seed, split in enumerate(("train", "tuning", "held_out")):
        embeddings, labels = planted(150, seed)
        inputs[split] = np.column_stack([embeddings, np.ones(150)])  # the same for everybody
        noise = np.random.default_rng(10 + seed).random(150) < 0.5
        has[split] = np.column_stack([labels == 0, noise])
    said = quality.probe(inputs, has)
    assert said.shape == (150, 2)
    assert quality.roc_auc_score(has["held_out"][:, 0], said[:, 0]) > 0.99
    assert 0.35 < quality.roc_auc_score(has["held_out"][:, 1], said[:, 1]) < 0.65


def test_planted_clusters_come_again_and_noise_does_not():
    train, others = planted(200, 0)[0], planted(100, 1)[0]
    assert quality.stability(train, others, 3, draws=5).min() > 0.99
    rng = np.random.default_rng(0)
    noise = quality.stability(rng.normal(size=(200, 6)), rng.normal(size=(100, 6)), 5, draws=5)
    assert noise.mean() < 0.7
    np.testing.assert_array_equal(quality.stability(train, others, 3, 2), quality.stability(train, others, 3, 2))


def test_distinguishing_codes_order_as_odds_ratios_do():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)
    presence = rng.random((400, 3)) < 0.3
    presence[:, 1] = rng.random(400) < np.where(labels == 1, 0.9, 0.1)
    odds, scores = quality.distinguishing_codes(presence, labels)
    table = [[(presence[labels == 1, 1] == seen).sum() for seen in (True, False)]]
    table.append([(presence[labels == 0, 1] == seen).sum() for seen in (True, False)])
    assert np.exp(odds[1, 1]) == pytest.approx(fisher_exact(table)[0], rel=0.1)
    assert scores[1].argmax() == 1 and scores[1, 1] > 5 and abs(scores[1, [0, 2]]).max() < 3
    np.testing.assert_allclose(odds[0], -odds[1], atol=1e-12)
