"""Conformal p-values against counts by hand, and the error rates that they promise, on drawn scores."""

import numpy as np
import pytest

from detect.conformal import conformal, conformal_among, false_discoveries, interval


def normal(rng, n):
    return rng.normal(size=n)


def heavy(rng, n):
    return rng.standard_t(2, n)


def skewed(rng, n):
    return np.exp(2 * rng.normal(size=n))


def mixture(rng, n):
    return np.where(rng.random(n) < 0.2, rng.normal(6, 3, n), rng.normal(size=n))


def tied(rng, n):
    return rng.integers(0, 40, n).astype(float)


SHAPES = [normal, heavy, skewed, mixture, tied]


def test_p_values_are_counts():
    reference = np.array([1.0, 2, 2, 5])
    assert conformal(np.array([0.0, 1, 2, 3, 5, 6]), reference) == pytest.approx(np.array([5, 5, 4, 2, 2, 1]) / 5)
    assert conformal_among(np.array([3.0, 1, 2, 2])) == pytest.approx(np.array([1, 4, 3, 3]) / 4)


@pytest.mark.parametrize("draw", SHAPES)
def test_p_values_follow_the_order_of_the_scores_and_nothing_else(draw):
    rng = np.random.default_rng(0)
    scores, reference = draw(rng, 500), draw(rng, 200)
    for p in (conformal(scores, reference), conformal_among(scores)):
        assert (np.diff(p[np.argsort(-scores, kind="stable")]) >= 0).all()
    assert (conformal(np.arctan(scores), np.arctan(reference)) == conformal(scores, reference)).all()


@pytest.mark.parametrize("draw", SHAPES)
@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_no_more_clean_samples_go_than_asked_for(draw, rate):
    """On average over the references, whatever the tails are like; and within the interval, for 95 % of them."""
    rng = np.random.default_rng(1)
    clean, m = draw(rng, 20_000), 500
    shares = np.array([(conformal(clean, draw(rng, m)) <= rate).mean() for _ in range(200)])
    assert shares.mean() <= rate * 1.1
    low, high = interval(m, rate)
    assert (shares <= high * 1.05).mean() >= 0.95
    if draw is not tied:
        assert shares.mean() >= rate * 0.85
        assert ((low * 0.95 <= shares) & (shares <= high * 1.05)).mean() >= 0.9


@pytest.mark.parametrize("draw", SHAPES)
@pytest.mark.parametrize("poisons", [0, 300, 2000])
def test_without_a_reference_the_rate_is_a_bound(draw, poisons):
    """Where poisons lie makes no difference to the bound, only to how many go along."""
    rng = np.random.default_rng(2)
    clean = draw(rng, 10_000)
    for where in (np.inf, 0.3, -np.inf):
        at = np.clip(where, clean.min() - 1, clean.max() + 1)
        p = conformal_among(np.concatenate([clean, at + 1e-3 * rng.normal(size=poisons)]))
        assert (p[:10_000] <= 0.05).mean() <= 0.05 * (10_000 + poisons) / 10_000 + 1e-9


def test_the_mirrored_lower_half_is_no_reference_for_heavy_upper_tails():
    """Why it is not offered: it keeps its promise for symmetric scores only."""

    def removed(scores):
        median = np.median(scores)
        lower = scores[scores <= median]
        return (conformal(scores, np.concatenate([lower, 2 * median - lower])) <= 0.01).mean()

    rng = np.random.default_rng(3)
    assert removed(normal(rng, 20_000)) == pytest.approx(0.01, abs=0.003)
    assert removed(skewed(rng, 20_000)) > 0.2


@pytest.mark.parametrize("draw", [normal, heavy, skewed, mixture])
def test_false_discoveries_are_bounded_on_average(draw):
    rng = np.random.default_rng(4)
    rates, found = [], []
    for _ in range(60):
        reference, clean = draw(rng, 2000), draw(rng, 1000)
        poison = np.quantile(reference, 0.999) + 5 + rng.random(100)
        chosen = false_discoveries(conformal(np.concatenate([clean, poison]), reference), 0.2)
        rates.append(chosen[:1000].sum() / max(chosen.sum(), 1))
        found.append(chosen[1000:].mean())
    assert np.mean(rates) <= 0.2 + 0.02
    assert np.mean(found) > 0.5


def test_false_discoveries_by_hand():
    p = np.array([0.01, 0.02, 0.03, 0.5, 0.9])
    assert false_discoveries(p, 0.05).tolist() == [True, True, True, False, False]
    assert not false_discoveries(p, 0.01).any()
    assert false_discoveries(np.array([0.04, 0.04]), 0.05).all()


def test_the_interval_is_that_of_the_order_statistic():
    low, high = interval(999, 0.01)
    rng = np.random.default_rng(5)
    drawn = 1 - np.sort(rng.random((4000, 999)), axis=1)[:, -10]  # uniform scores: the share above the 10th highest
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([low, high], rel=0.08)
    assert interval(50, 0.01) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "reference", "message"),
    [([1.0], [], "got none"), ([np.nan], [1.0], "scores must be finite"), ([1.0], [np.inf], "reference scores")],
)
def test_what_gives_no_p_value_is_refused(scores, reference, message):
    with pytest.raises(ValueError, match=message):
        conformal(np.array(scores), np.array(reference))
