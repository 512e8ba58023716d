"""Drift of mild augmentations, alone and with local density: closed forms, and what they must not depend on."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from test_detect_views import photographs, poison_cluster

from detect import LOF, SLOF, DetectorInputs, Drift, Embeddings, Multiscale
from detect.metrics import robust_z
from detect.views import DRIFT


@pytest.mark.parametrize("name", DRIFT)
def test_views_keep_shape_range_and_input_and_do_not_depend_on_the_batch(name):
    x = photographs().clamp(0, 1)
    before = x.clone()
    seen = DRIFT[name](x)
    assert seen.shape == x.shape
    assert seen.dtype == x.dtype
    assert float(seen.min()) >= -1e-6
    assert float(seen.max()) <= 1 + 1e-6
    assert not torch.equal(seen, x)
    torch.testing.assert_close(x, before)
    torch.testing.assert_close(DRIFT[name](x[1:2]), seen[1:2])


def test_turning_by_15_degrees_moves_a_point_along_its_circle():
    x = torch.zeros(1, 3, 65, 65)
    x[..., 31:34, 51:54] = 1  # 20 pixels right of the middle
    seen = DRIFT["turned"](x)[0, 0]
    row, column = divmod(int(seen.argmax()), 65)
    assert math.hypot(row - 32, column - 32) == pytest.approx(20, abs=2)
    assert abs(math.degrees(math.atan2(row - 32, column - 32))) == pytest.approx(15, abs=4)


def given(drift, image=None):
    drift = np.asarray(drift, dtype=np.float32)
    image = np.random.default_rng(0).standard_normal((len(drift), 4)).astype(np.float32) if image is None else image
    return DetectorInputs(Embeddings.of(image), drift=drift)


def test_robust_z_is_the_distance_to_the_median_in_standard_deviations():
    values = np.random.default_rng(0).normal(5, 2, (20_001, 2))
    values[0] = 25
    scores = robust_z(values)
    np.testing.assert_allclose(np.median(scores, axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(scores[0], 10, rtol=0.05)
    np.testing.assert_array_equal(robust_z(np.ones(5)), 0)
    assert np.isfinite(robust_z(np.array([1.0, 1.0, 1.0, 2.0]))).all()


def test_drift_is_the_most_unusual_move_of_all_views():
    drift = np.exp(np.random.default_rng(1).normal([-3, -1], [0.2, 0.5], (500, 2)))
    drift[7, 0] = np.exp(-2)  # five deviations: small beside the other view's usual moves
    scores = Drift().score(given(drift))
    assert scores.argmax() == 7
    logs = np.log(drift)
    centred = np.abs(logs - np.median(logs, axis=0))
    expected = ((logs - np.median(logs, axis=0)) / (1.4826 * np.median(centred, axis=0))).max(axis=1)
    np.testing.assert_allclose(scores, expected, rtol=1e-4)


def test_drift_does_not_depend_on_the_number_of_poisons():
    rng = np.random.default_rng(2)
    for poisons in (5, 100, 200):
        drift = np.exp(rng.normal(-3, 0.3, (1000, 3)))
        drift[:poisons, 1] = np.exp(rng.normal(-1, 0.3, poisons))
        assert roc_auc_score(np.arange(1000) < poisons, Drift().score(given(drift))) > 0.99


@pytest.mark.parametrize("drift", [np.ones(8), np.ones((7, 2)), np.ones((8, 0)), np.full((8, 2), np.nan)])
def test_drift_of_a_wrong_shape_or_not_finite_is_refused(drift):
    with pytest.raises(ValueError, match="drift must be"):
        Drift().score(replace(given(np.ones((8, 2))), drift=drift))


def test_an_image_that_does_not_move_at_all_is_not_suspicious():
    drift = np.full((50, 2), 0.1)
    drift[3], drift[4] = 0, -1e-7  # a cosine a little above 1
    scores = Drift().score(given(drift))
    assert np.isfinite(scores).all()
    assert scores[3] < 0
    assert scores[3] == scores[4]


def test_multiscale_is_the_largest_robust_z_of_four_log_ratios():
    image, _ = poison_cluster(poisons=20)
    density = np.max([robust_z(np.log(kind(k=k).score(image))) for kind in (SLOF, LOF) for k in (10, 40)], axis=0)
    np.testing.assert_allclose(Multiscale(k=40, narrow=10).score(image), density)
    with pytest.raises(ValueError, match=r"narrow must lie in 1\.\.40.* got 41"):
        Multiscale(k=40, narrow=41)
