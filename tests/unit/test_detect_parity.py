"""`convention: paper_code` against a small oracle that walks through the public code's steps, sample by sample."""

import math
from pathlib import Path

import numpy as np
import pytest

from detect import DAO, LID, LOF, SLOF, Embeddings, IsolationForest, KDistance
from detect.base import CONVENTIONS
from detect.dao import FORMS
from detect.search.neighbours import batch_rows

N, D = 60, 5


def embeddings(n: int = N, seed: int = 0) -> Embeddings:
    image, text = np.random.default_rng(seed).normal(size=(2, n, D)).astype(np.float32)
    return Embeddings(np.arange(n), image, text)


def public(image: np.ndarray, text: np.ndarray | None, k: int) -> dict[str, np.ndarray]:
    """All four scores of one batch: lists without the sample, then a lookup in a matrix with everybody."""
    everybody = image if text is None else np.concatenate([image, text])
    everybody = everybody.astype(np.float64)
    matrix = [sorted(math.dist(a, b) for b in everybody) for a in everybody]  # self, at 0, first
    scores: dict[str, list[float]] = {"kdist": [], "lid": [], "slof": [], "dao": []}

    def dimension(radii):
        return -k / sum(math.log(radii[i] / radii[k] + 1e-4) for i in range(k))

    for i, one in enumerate(image.astype(np.float64)):
        listed = [math.dist(one, other) for j, other in enumerate(image.astype(np.float64)) if j != i]
        if text is not None:
            listed += [math.dist(one, other) for j, other in enumerate(text.astype(np.float64)) if j != i]
        order = sorted(range(len(listed)), key=listed.__getitem__)
        radii = [listed[j] for j in order]
        scores["kdist"].append(radii[k])
        scores["lid"].append(dimension(radii))
        ratios = [radii[k] / matrix[j][k] for j in order[:k]]
        scores["slof"].append(sum(ratios) / k)
        logs = [dimension(matrix[j]) * math.log(ratio) for j, ratio in zip(order[:k], ratios, strict=True)]
        scores["dao"].append(sum(logs) / k)
    return {name: np.array(values) for name, values in scores.items()}


KINDS = {"kdist": KDistance, "lid": LID, "slof": SLOF, "dao": DAO}


@pytest.mark.parametrize("modality", ["image", "joint"])
@pytest.mark.parametrize("name", KINDS)
def test_one_batch(name, modality):
    e, k = embeddings(), 7
    expected = public(e.image, e.text if modality == "joint" else None, k)[name]
    scores = KINDS[name](k=k, convention="paper_code", modality=modality).score(e)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("modality", ["image", "joint"])
@pytest.mark.parametrize("name", KINDS)
def test_several_batches(name, modality):
    e, k, size = embeddings(), 4, 25
    expected = np.full(N, np.nan)
    for rows, new in batch_rows(N, size, seed=3):
        text = e.text[rows] if modality == "joint" else None
        expected[rows[:new]] = public(e.image[rows], text, k)[name][:new]
    detector = KINDS[name](k=k, convention="paper_code", modality=modality, scope="batch", batch_size=size, seed=3)
    np.testing.assert_allclose(detector.score(e), expected, rtol=1e-5, atol=1e-6)


def test_the_radius_is_that_of_the_neighbour_after_the_k_th():
    e = embeddings()
    np.testing.assert_array_equal(KDistance(k=4, convention="paper_code").score(e), KDistance(k=5).score(e))


def test_the_constant_inside_the_logarithm_is_all_that_differs_in_lid_beside_the_radius():
    e, k = embeddings(), 6
    exact = LID(k=k + 1).score(e)  # its last ratio is 1 and adds nothing to the sum, so it divides by k + 1
    np.testing.assert_allclose(LID(k=k, convention="paper_code").score(e), exact * k / (k + 1), rtol=2e-3)


@pytest.mark.parametrize("name", KINDS)
def test_conventions_give_different_numbers_and_much_the_same_order(name):
    from scipy.stats import spearmanr

    rng = np.random.default_rng(4)
    x = rng.normal(size=(300, 8)) * rng.uniform(0.2, 3, (300, 1))
    one, other = (KINDS[name](k=16, convention=c).score(x) for c in ("published", "paper_code"))
    assert not np.allclose(one, other, rtol=1e-3)
    assert spearmanr(one, other).statistic > 0.5


@pytest.mark.parametrize("name", KINDS)
def test_duplicates_are_finite(name):
    x = np.repeat(np.random.default_rng(0).normal(size=(6, 3)), 10, axis=0)
    assert np.isfinite(KINDS[name](k=5, convention="paper_code").score(x)).all()
    assert np.isfinite(KINDS[name](k=5, convention="paper_code").score(np.ones((20, 3)))).all()


def test_what_the_public_code_does_not_have_is_refused():
    with pytest.raises(ValueError, match="LOF has no convention 'paper_code'"):
        LOF(convention="paper_code")
    with pytest.raises(ValueError, match="needs scope full or batch"):
        SLOF(convention="paper_code", reference_set=np.eye(20))
    with pytest.raises(ValueError, match="form must be mean_log, got 'authors'"):
        DAO(convention="paper_code", form="authors")
    with pytest.raises(ValueError, match="convention must be one of published, paper_code, got 'public'"):
        SLOF(convention="public")
    with pytest.raises(TypeError, match="convention"):
        IsolationForest(convention="paper_code")  # scikit-learn's in both


def test_a_k_without_room_for_one_neighbour_more_is_refused():
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.9 .* got 10"):
        KDistance(k=9, convention="paper_code").score(np.eye(10))


def test_the_page_explains_every_word_that_rows_use():
    page = (Path(__file__).parents[2] / "docs/parity.md").read_text()
    assert [word for word in {*CONVENTIONS, *FORMS} if f"| `{word}` |" not in page] == []
