"""Pursuit: it finds poisons that no neighbourhood betrays, and does no harm where there is no direction."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from detect import DetectorInputs, DriftPursuit, Embeddings, Multiscale, Pursuit
from detect.metrics import rank_share
from detect.pursuit import best_directions, climb, separations, surprise

SIZES = {"k": 160, "narrow": 20}


def concepts(n=4000, d=24, seed=0):
    """Ten concepts that run into each other."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((10, d))[rng.integers(0, 10, n)] + rng.standard_normal((n, d))


def poisoned(share, seed=0, strength=6.0):
    """`share` of the samples lie further along one axis of little variance, and are as dense as the others."""
    x = concepts(seed=seed)
    x[:, 0] *= 0.1
    truth = np.random.default_rng(seed + 1).random(len(x)) < share
    x[truth, 0] += 0.1 * strength
    return x.astype(np.float32), truth


@pytest.mark.parametrize("share", [0.01, 0.02, 0.03])
@pytest.mark.parametrize("seed", [0, 1])
def test_poisons_along_one_axis_are_found_where_density_says_nothing(share, seed):
    x, truth = poisoned(share, seed, strength=8)
    rng = np.random.default_rng(3)
    drift = np.exp(rng.normal(-3, 0.5, (len(x), 2)) + truth[:, None] * rng.random((len(x), 2)))
    inputs = DetectorInputs(Embeddings.of(x), drift=drift)
    assert roc_auc_score(truth, Multiscale(**SIZES).score(x)) < 0.8
    assert roc_auc_score(truth, DriftPursuit(**SIZES).score(inputs)) > 0.9


def test_without_a_direction_the_other_signs_decide():
    x = concepts().astype(np.float32)
    few = np.arange(8)
    x[few] += 6 * np.random.default_rng(5).standard_normal((8, x.shape[1])).astype(np.float32)  # lone outliers
    truth = np.isin(np.arange(len(x)), few)
    assert roc_auc_score(truth, Multiscale(**SIZES).score(x)) > 0.99
    assert roc_auc_score(truth, Pursuit(**SIZES).score(x)) > 0.98


def test_several_triggers_are_found_together():
    x, first = poisoned(0.01, strength=10)
    second = np.random.default_rng(9).random(len(x)) < 0.01
    x[:, 1] *= 0.1
    x[second, 1] += 1.0
    drift = np.exp(np.random.default_rng(3).normal(-3, 0.3, (len(x), 1)) + (first | second)[:, None])
    scores = DriftPursuit(**SIZES).score(DetectorInputs(Embeddings.of(x), drift=drift))
    for truth in (first, second):
        assert roc_auc_score(truth, scores) > 0.97


def test_scores_follow_from_the_seed_and_ignore_scale_and_rotation():
    x, _ = poisoned(0.02)
    scores = Pursuit(**SIZES).score(x)
    np.testing.assert_array_equal(scores, Pursuit(**SIZES).score(x))
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((x.shape[1],) * 2))[0]
    turned = Pursuit(**SIZES).score((3 * x @ turn).astype(np.float32))
    assert np.corrcoef(scores, turned)[0, 1] > 0.99


def test_separation_is_the_difference_of_means_over_the_root_of_the_mean_variance():
    places = np.random.default_rng(0).standard_normal((3, 50))
    got = separations(places, np.array([5, 20]))
    for row, of_sizes in zip(places, got, strict=True):
        for size, value in zip((5, 20), of_sizes, strict=True):
            inside, outside = np.sort(row)[-size:], np.sort(row)[:-size]
            expected = (inside.mean() - outside.mean()) / np.sqrt((inside.var() + outside.var()) / 2)
            assert value == pytest.approx(expected)


def test_a_direction_climbs_to_the_group_it_is_near():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2000, 8))
    z[:40, 0] += 12
    start = np.eye(8)[:1] + 0.5 * rng.standard_normal((1, 8))
    (direction,) = climb(z, start, 40)
    assert direction[0] > 0.98
    assert np.linalg.norm(direction) == pytest.approx(1)
    best = best_directions(z, [surprise(rng.random(2000))], np.random.default_rng(1))[0]
    assert best.vector[0] > 0.95
    assert 30 <= best.size <= 60


def test_surprise_has_mean_one_and_the_most_suspicious_sample_has_the_largest():
    scores = np.random.default_rng(0).standard_normal(1000)
    values = surprise(scores)
    assert values.mean() == pytest.approx(1, abs=0.01)
    assert values.argmax() == scores.argmax()
    np.testing.assert_allclose(values, -np.log(1 - rank_share(scores)))


@pytest.mark.parametrize("x", [np.ones((300, 3)), np.random.default_rng(0).standard_normal((300, 1))])
def test_constant_embeddings_and_a_single_dimension_have_finite_scores(x):
    assert np.isfinite(Pursuit(**SIZES).score(x.astype(np.float32))).all()


def test_drift_is_needed_by_one_and_texts_have_directions_of_their_own():
    x = concepts(400).astype(np.float32)
    with pytest.raises(ValueError, match="DriftPursuit needs drift"):
        DriftPursuit(**SIZES).score(x)
    text, truth = poisoned(0.03, strength=12)
    both = Embeddings(np.arange(len(text)), concepts(len(text), seed=4).astype(np.float32), text)
    for modality in ("text", "pair"):
        assert roc_auc_score(truth, Pursuit(**SIZES, modality=modality).score(both)) > 0.9
    assert roc_auc_score(truth, Pursuit(**SIZES).score(both)) < 0.7
