"""Gentle views, flicker and tandem: closed forms, and what they must not depend on."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from detect import LID, LOF, SLOF, DetectorInputs, Embeddings, Flicker, Tandem
from detect.clip_score import cosine
from detect.metrics import rank_share
from detect.views import VIEWS


def photographs(count=4, size=32):
    """Smooth pictures with a bright disc left of the middle."""
    rows = torch.linspace(0, 1, size)
    x = torch.stack([rows[None, :] * (0.3 + 0.1 * i) + rows[:, None] * 0.3 for i in range(count)])
    disc = (rows[:, None] - 0.5) ** 2 + (rows[None, :] - 0.3) ** 2 < 0.04
    return torch.stack([x, x * 0.8, x * 0.6], dim=1) + 0.3 * disc


@pytest.mark.parametrize("name", VIEWS)
def test_views_keep_shape_range_and_input_and_do_not_depend_on_the_batch(name):
    x = photographs().clamp(0, 1)
    before = x.clone()
    seen = VIEWS[name](x)
    assert seen.shape == x.shape
    assert seen.dtype == x.dtype
    assert float(seen.min()) >= 0
    assert float(seen.max()) <= 1
    assert not torch.equal(seen, x)
    torch.testing.assert_close(x, before)
    torch.testing.assert_close(VIEWS[name](x[1:2]), seen[1:2])


def test_views_do_what_they_are_called():
    x = photographs()
    torch.testing.assert_close(VIEWS["mirrored"](x), x.flip(3))
    torch.testing.assert_close(VIEWS["exchanged"](x)[:, 0], x[:, 2])
    levelled = VIEWS["levelled"](x.clamp(0, 1))
    torch.testing.assert_close(levelled.mean(dim=(2, 3)), torch.tensor([[0.48, 0.46, 0.41]] * 4), atol=0.03, rtol=0)
    dots = torch.zeros(1, 3, 16, 16)
    dots[..., ::2, ::2] = 1
    assert float(VIEWS["smoothed"](dots).std()) < 0.5 * float(dots.std())
    ramp = torch.linspace(0, 1, 60).expand(1, 3, 60, 60)
    zoomed = VIEWS["zoomed"](ramp)
    assert float(zoomed[0, 0, 0, 0]) == pytest.approx(1 / 12, abs=0.01)
    assert float(zoomed[0, 0, 0, -1]) == pytest.approx(11 / 12, abs=0.01)


def inputs(views, cosines):
    """Image embeddings at the given cosines to one caption."""
    cosines = np.asarray(cosines, np.float64)
    image = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1).astype(np.float32)
    text = np.tile(np.float32([1, 0]), (len(cosines), 1))
    return DetectorInputs(Embeddings(np.arange(len(cosines)), image, text), views=np.asarray(views))


def test_flicker_is_the_mean_loss_in_units_of_the_usual_one():
    rng = np.random.default_rng(0)
    cosines, views = rng.uniform(0.5, 1, 50), rng.uniform(0.2, 1, (50, 3))
    scores = Flicker(eps=0.1).score(inputs(views, cosines))
    loss = np.maximum(np.float32(cosines)[:, None] - views, 0)
    expected = [np.mean([loss[i, v] / (np.median(loss[:, v]) + 0.1) for v in range(3)]) for i in range(50)]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_a_caption_that_the_model_never_believed_does_not_flicker():
    views = np.full((20, 2), 0.8)
    cosines = np.full(20, 0.85)
    cosines[3], views[3] = -0.2, -0.2  # mislabelled: no agreement to lose
    cosines[7], views[7, 1] = 0.9, 0.1  # a trigger that one view removes
    scores = Flicker().score(inputs(views, cosines))
    assert scores.argmax() == 7
    assert scores[3] <= np.median(scores)


def test_flicker_is_finite_where_no_view_ever_costs_anything():
    scores = Flicker().score(inputs(np.full((5, 2), 0.9), np.full(5, 0.5)))
    np.testing.assert_array_equal(scores, 0)


@pytest.mark.parametrize("views", [np.ones(8), np.ones((7, 2)), np.ones((8, 0)), np.full((8, 2), np.nan)])
def test_views_of_a_wrong_shape_or_not_finite_are_refused(views):
    with pytest.raises(ValueError, match="views must be"):
        Flicker().score(inputs(views, np.full(8, 0.5)))


def test_share_lies_between_0_and_1_and_ties_share_their_mean():
    np.testing.assert_allclose(rank_share(np.array([3.0, 1.0, 3.0, 2.0])), [0.75, 0.125, 0.75, 0.375])


def poison_cluster(poisons, seed=0):
    """1,200 clean samples in 24 concepts of 3 dimensions, and poisons as one cluster of 12: (image, truth)."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((25, 24))
    clean = [centre + 0.2 * rng.standard_normal((50, 3)) @ rng.standard_normal((3, 24)) for centre in centres[:24]]
    poison = centres[24] + 0.1 * rng.standard_normal((poisons, 12)) @ rng.standard_normal((12, 24))
    image = np.vstack([*clean, poison]).astype(np.float32)
    return image, np.arange(len(image)) >= 1200


def test_tandem_holds_where_the_poisons_outnumber_k_and_slof_collapses():
    image, truth = poison_cluster(poisons=120)
    rng = np.random.default_rng(1)
    text = np.tile(np.float32([1] * 24), (len(image), 1))
    embeddings = Embeddings(np.arange(len(image)), image, text)
    views = cosine(embeddings)[:, None] - 0.05 * rng.random((len(image), 3))
    views[truth, 1] -= 0.3 * rng.random(120)
    assert roc_auc_score(truth, SLOF(k=16).score(embeddings)) < 0.8
    assert roc_auc_score(truth, Tandem(k=30).score(DetectorInputs(embeddings, views=views))) > 0.97


@pytest.mark.parametrize(
    ("poisons", "failing"), [(8, LID(k=15)), (12, LID(k=15)), (60, LOF(k=15)), (120, LOF(k=15))]
)
def test_tandem_holds_where_one_sign_of_the_neighbourhood_fails(poisons, failing):
    """And without Flicker's help: no view costs anything."""
    image, truth = poison_cluster(poisons)
    embeddings = Embeddings(np.arange(len(image)), image, image)
    given = DetectorInputs(embeddings, views=np.ones((len(image), 2)))
    assert roc_auc_score(truth, failing.score(embeddings)) < 0.5
    assert roc_auc_score(truth, Tandem(k=30).score(given)) > 0.87


def test_tandem_is_fishers_combination_of_neighbourhood_and_flicker():
    image, _ = poison_cluster(poisons=20)
    embeddings = Embeddings(np.arange(len(image)), image, image)
    given = DetectorInputs(embeddings, views=np.random.default_rng(2).random((len(image), 2)))
    wide, narrow, ratio = (rank_share(sign.score(embeddings)) for sign in (LID(k=10), LID(k=5), LOF(k=5)))
    u = rank_share(-np.log1p(-wide) - np.log1p(-np.maximum(narrow, ratio)))
    v = rank_share(Flicker().score(given))
    np.testing.assert_allclose(Tandem(k=10).score(given), -np.log(1 - u) - np.log(1 - v))
    with pytest.raises(ValueError, match="needs views"):
        Tandem(k=10).score(embeddings)


def test_a_slight_loss_must_be_above_0():
    with pytest.raises(ValueError, match="eps must be above 0, got 0"):
        Flicker(eps=0)
