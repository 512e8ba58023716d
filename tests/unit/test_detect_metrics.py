"""Metrics against counts done by hand."""

import itertools

import numpy as np
import pytest

from detect import Scores, evaluate
from detect.metrics import rank


def scores(values) -> Scores:
    return Scores(np.arange(len(values)), np.asarray(values, dtype=np.float64))


def test_auroc_is_the_share_of_pairs_in_the_right_order_ties_counting_half():
    rng = np.random.default_rng(0)
    values, truth = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.2
    pairs = [(p > c) + 0.5 * (p == c) for p, c in itertools.product(values[truth], values[~truth])]
    assert evaluate(scores(values), truth).auroc == pytest.approx(np.mean(pairs))


def test_auprc_is_the_mean_precision_at_each_poison():
    values, truth = [9, 8, 7, 6, 5, 4], np.array([1, 0, 1, 0, 0, 1], bool)
    assert evaluate(scores(values), truth).auprc == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)


def test_fpr95_is_the_share_of_clean_samples_above_the_poison_that_completes_95_percent():
    values = np.arange(140)[::-1].astype(float)
    truth = np.zeros(140, bool)
    truth[[*range(19), 30, 139]] = True  # 20 of 21 poisons are 95.2 %; the 20th has 11 clean samples before it
    assert evaluate(scores(values), truth).fpr95 == pytest.approx(11 / 119)


def test_fpr100_is_the_share_of_clean_samples_not_below_the_lowest_poison_ties_counting():
    values = np.array([9.0, 8, 7, 6, 5, 5, 4, 3, 2, 1])
    truth = np.array([1, 0, 0, 0, 1, 0, 0, 0, 0, 0], bool)
    assert evaluate(scores(values), truth).fpr100 == pytest.approx(4 / 8)
    truth[[4, 9]] = False, True  # one poison comes last: all of the clean samples go before it is found
    assert evaluate(scores(values), truth).fpr100 == 1


def test_recall_is_the_share_of_poison_among_the_highest_scores():
    values = np.arange(200)[::-1].astype(float)
    truth = np.zeros(200, bool)
    truth[[0, 1, 3, 12, 150]] = True
    recall = evaluate(scores(values), truth).recall_at
    assert recall == {0.01: pytest.approx(2 / 5), 0.05: pytest.approx(3 / 5), 0.1: pytest.approx(4 / 5)}


def test_recall_looks_at_one_sample_at_least_and_takes_ties_by_position():
    truth = np.array([0, 1, 0, 0], bool)
    assert evaluate(scores([1, 1, 1, 1]), truth, shares=[0.01]).recall_at == {0.01: 0.0}
    assert evaluate(scores([1, 2, 1, 1]), truth, shares=[0.01]).recall_at == {0.01: 1.0}
    assert evaluate(scores([1, 1, 1, 1]), truth, shares=[0.5]).recall_at == {0.5: 1.0}


@pytest.mark.parametrize(("sign", "auroc", "fpr"), [(1, 1.0, 0.0), (-1, 0.0, 1.0)])
def test_perfect_and_perfectly_wrong(sign, auroc, fpr):
    truth = np.arange(50) < 5
    metrics = evaluate(scores(sign * truth.astype(float)), truth)
    assert (metrics.auroc, metrics.fpr95, metrics.fpr100) == (auroc, fpr, fpr)


def test_only_the_order_of_the_scores_counts():
    rng = np.random.default_rng(1)
    values, truth = rng.normal(size=300), rng.random(300) < 0.1
    assert evaluate(scores(values), truth) == evaluate(scores(np.exp(3 * values) - 7), truth)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="need poisoned and clean samples, got 0 poisoned of 4"):
        evaluate(scores([1, 2, 3, 4]), np.zeros(4))
    with pytest.raises(ValueError, match="need poisoned and clean samples, got 4 poisoned of 4"):
        evaluate(scores([1, 2, 3, 4]), np.ones(4))
    with pytest.raises(ValueError, match=r"is_poison must be \(4,\), one per score, got \(3,\)"):
        evaluate(scores([1, 2, 3, 4]), np.ones(3))
    with pytest.raises(ValueError, match="scores must be finite, but 2 are not"):
        scores([1, np.nan, np.inf])
    with pytest.raises(ValueError, match=r"must both be \(n,\)"):
        Scores(np.arange(3), np.zeros((3, 1)))


def test_ranks_of_equals_follow_their_order():
    np.testing.assert_array_equal(rank(np.array([1.0, 3.0, 1.0, 3.0])), [3, 1, 4, 2])
    assert rank(np.zeros(0)).shape == (0,)
