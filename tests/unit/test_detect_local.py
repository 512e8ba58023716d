"""k-dist, LID, SLOF, LOF and DAO against closed forms, a float64 brute force and scikit-learn."""

import math

import numpy as np
import pytest

from detect import DAO, LID, LOF, SLOF, KDistance, Neighbours

LINE = np.array([[0.0], [1.0], [3.0], [7.0], [15.0]])  # gaps 1, 2, 4, 8
DETECTORS = [KDistance, LID, SLOF, LOF, DAO]


def points(n: int = 120, d: int = 6, seed: int = 0) -> np.ndarray:
    """A dense and a sparse cluster, and strays."""
    rng = np.random.default_rng(seed)
    dense, sparse = rng.normal(0, 0.1, (n // 2, d)), rng.normal(3, 1, (n - n // 2 - 5, d))
    return np.concatenate([dense, sparse, rng.normal(0, 9, (5, d))]).astype(np.float32)


def brute(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n, k) in float64 and indices (n, k), self excluded, one row at a time."""
    x = x.astype(np.float64)
    distances, indices = np.empty((len(x), k)), np.empty((len(x), k), dtype=int)
    for i in range(len(x)):
        away = [(math.dist(x[i], x[j]), j) for j in range(len(x)) if j != i]
        for column, (distance, j) in enumerate(sorted(away)[:k]):
            distances[i, column], indices[i, column] = distance, j
    return distances, indices


def oracle(name: str, x: np.ndarray, k: int) -> np.ndarray:
    """Each definition written out, sample by sample, in float64."""
    r, near = brute(x, k)
    n, kd = len(x), r[:, -1]
    lid = [-1 / (sum(math.log(r[i, j] / kd[i]) for j in range(k)) / k) for i in range(n)]
    reach = [sum(max(kd[near[i, j]], r[i, j]) for j in range(k)) / k for i in range(n)]
    scores = {
        "KDistance": lambda i: kd[i],
        "LID": lambda i: lid[i],
        "SLOF": lambda i: sum(kd[i] / kd[o] for o in near[i]) / k,
        "LOF": lambda i: sum((1 / reach[o]) / (1 / reach[i]) for o in near[i]) / k,
        "DAO": lambda i: sum(lid[o] * math.log(kd[i] / kd[o]) for o in near[i]) / k,
        "DAO published": lambda i: sum((kd[i] / kd[o]) ** lid[o] for o in near[i]) / k,
        "DAO authors": lambda i: sum((kd[i] / kd[o]) ** (lid[o] * (k - 1) / k) for o in near[i]) / k,
    }
    return np.array([scores[name](i) for i in range(n)])


@pytest.mark.parametrize("k", [2, 7, 16])
@pytest.mark.parametrize("kind", DETECTORS)
def test_scores_are_the_definition_written_out(kind, k):
    x = points()
    # A dimension rests on the logarithm of ratios near 1, in which float32 distances lose digits.
    rtol = 2e-3 if kind in (LID, DAO) else 2e-5
    np.testing.assert_allclose(kind(k=k).score(x), oracle(kind.__name__, x, k), rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("form", ["published", "authors"])
def test_published_dao_raises_the_ratio_to_the_neighbours_dimension(form):
    x = points()[:-5]  # without the strays, whose scores have a hundred digits
    np.testing.assert_allclose(DAO(k=9, form=form).score(x), oracle(f"DAO {form}", x, 9), rtol=1e-3)


def test_the_authors_estimate_of_dimension_is_that_of_levina_and_bickel():
    """(k - 1) / sum of ln(r_k / r_i), as in their code; a ratio of 2 to the neighbour tells the exponent."""
    r, near = brute(LINE, 2)
    dimensions = [1 / math.log(r[o, 1] / r[o, 0]) for o in range(5)]
    expected = [sum((r[i, 1] / r[o, 1]) ** dimensions[o] for o in near[i]) / 2 for i in range(5)]
    np.testing.assert_allclose(DAO(k=2, form="authors").score(LINE), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("detector", "word"),
    [
        (DAO(), "mean_log"),
        (DAO(form="published"), "published"),
        (DAO(form="authors"), "authors"),
        (DAO(convention="paper_code"), "paper_code"),
        (SLOF(), "published"),
        (LID(convention="paper_code"), "paper_code"),
    ],
)
def test_one_word_says_how_a_score_is_defined(detector, word):
    assert detector.definition == word


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form must be one of mean_log, published, authors, got 'power'"):
        DAO(form="power")


def test_the_logarithm_keeps_a_single_neighbour_from_outweighing_all_others():
    x = points()
    assert DAO(k=5, form="published").score(x).max() > 1e3 * DAO(k=5).score(x).max()


@pytest.mark.parametrize("k", [1, 5, 20])
def test_lof_agrees_with_scikit_learn(k):
    from sklearn.neighbors import LocalOutlierFactor

    x = points()
    theirs = -LocalOutlierFactor(n_neighbors=k).fit(x.astype(np.float64)).negative_outlier_factor_
    np.testing.assert_allclose(LOF(k=k).score(x), theirs, rtol=1e-5)


def test_closed_forms_on_a_line():
    np.testing.assert_allclose(KDistance(k=1).score(LINE), [1, 1, 2, 4, 8])
    np.testing.assert_allclose(KDistance(k=2).score(LINE), [3, 2, 3, 6, 12])
    # kd = 1, 1, 2, 4, 8, and the nearest neighbour of each is the one to its left (of the first, the second).
    np.testing.assert_allclose(SLOF(k=1).score(LINE), [1, 1, 2, 2, 2])
    # -1 / mean(ln(r1 / r2), 0) = 2 / ln(r2 / r1), with r2 / r1 = 3, 2, 3 / 2, 3 / 2, 3 / 2.
    np.testing.assert_allclose(LID(k=2).score(LINE), 2 / np.log([3, 2, 1.5, 1.5, 1.5]), rtol=1e-6)


def test_lid_of_radii_that_grow_as_a_power_is_their_dimension():
    """Radii (i / k) ** (1 / m), as in an m-dimensional ball, have LID m as k grows."""
    k = 4000
    for m in (2.0, 10.0):
        radii = (np.arange(1, k + 1) / k) ** (1 / m)
        table = Neighbours(radii[None].astype(np.float32), np.zeros((1, k), int), np.arange(1))
        assert LID(k=k).score_neighbours(table)[0] == pytest.approx(m, rel=2e-3)


def test_density_ratios_are_one_where_density_is_constant():
    ring = np.exp(2j * np.pi * np.arange(40) / 40)
    x = np.stack([ring.real, ring.imag], axis=1)
    np.testing.assert_allclose(SLOF(k=4).score(x), 1, rtol=1e-5)
    np.testing.assert_allclose(LOF(k=4).score(x), 1, rtol=1e-5)
    np.testing.assert_allclose(DAO(k=4).score(x), 0, atol=1e-4)


@pytest.mark.parametrize("kind", [SLOF, LOF, DAO, LID])
def test_density_ratios_do_not_depend_on_the_scale(kind):
    x = points()
    np.testing.assert_allclose(kind(k=7).score(x * 1000), kind(k=7).score(x), rtol=1e-4, atol=1e-6)


# --- duplicates and other corners ---------------------------------------------------------------------------------


def test_a_distance_of_zero_counts_as_the_smallest_that_is_not():
    """Six copies of one point, and a sample beside them: its density ratio is finite and free of scale."""
    x = np.array([[0.0]] * 6 + [[2.0], [2.5], [5.0]])
    for scale in (1.0, 1e6):
        scores = SLOF(k=2).score(x * scale)
        np.testing.assert_allclose(scores[:6], 1)  # among each other
        # kd: the copies 0 -> 0.5, then 2, 2.5, 3.  The neighbours of the sample at 2: the one at 2.5, and a copy.
        assert scores[6] == pytest.approx((2 / 2.5 + 2 / 0.5) / 2)


@pytest.mark.parametrize("kind", DETECTORS)
def test_nothing_but_duplicates(kind):
    assert len(set(kind(k=3).score(np.ones((9, 4))).tolist())) == 1


def test_lid_where_all_neighbours_are_equally_far_is_its_largest_value():
    from detect.local import LARGEST_LID

    np.testing.assert_array_equal(LID(k=4).score(np.eye(8)), LARGEST_LID)
    assert LID(k=4).score(np.ones((8, 2)))[0] == 0  # a point has no dimension


@pytest.mark.parametrize("kind", [LID, DAO])
def test_a_dimension_needs_two_neighbours(kind):
    with pytest.raises(ValueError, match=f"k must be at least 2 for {kind.__name__}, got 1"):
        kind(k=1)


@pytest.mark.parametrize("kind", DETECTORS)
def test_one_wide_table_serves_every_detector_and_every_smaller_k(kind):
    from detect import Embeddings, find_neighbours

    x = points()
    wide = find_neighbours(Embeddings.of(x), 40, kind().search)
    np.testing.assert_array_equal(kind(k=6).score(x, neighbours=wide), kind(k=6).score(x))


def test_detectors_that_search_alike_have_equal_searches():
    assert SLOF(k=3).search == DAO(k=9).search == LOF().search
    assert SLOF(normalise=True).search != SLOF().search
