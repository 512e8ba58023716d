"""A search reports its progress, and keeps to the device that was asked for."""

import numpy as np
import pytest

from detect.search import candidates, knn


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("itself", [True, False])
def test_progress_adds_up_and_moves_during_the_products(backend, itself):
    x = np.random.default_rng(1).normal(size=(5000, 8)).astype(np.float32)
    reported: list[float] = []
    own = np.arange(len(x)) if itself else None
    knn.nearest(x if itself else x.copy(), x, 3, self_rows=own, backend=backend, progress=reported.append)
    assert sum(reported) == pytest.approx(len(x))
    assert max(reported) <= 0.9 * len(x)


def test_the_device_asked_for_is_the_one_searched_on():
    x = np.zeros((40, 8), np.float32)
    with pytest.raises((RuntimeError, AssertionError)):
        knn.nearest(x, x, 3, device="cuda:99")
    assert candidates.choose(10_000, 10_000, device="cuda:0") == ("torch", "there is a GPU")
