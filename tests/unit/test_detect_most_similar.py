"""The most similar rows, block by block, against sorting all products at once."""

import numpy as np
import pytest

from detect.embeddings import most_similar, unit
from detect.metrics import rank


def by_sorting(queries, rows, k, hidden):
    products = queries @ rows.T
    for own, left_out in zip(products, hidden, strict=True):
        own[left_out] = -np.inf
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(products, order, 1)


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
@pytest.mark.parametrize("levels", [None, 3])
def test_blocks_change_nothing(size, levels):
    draw = np.random.default_rng(size)
    rows = draw.normal(size=(100, 4)).astype(np.float32)
    rows = unit(rows) if levels is None else np.round(rows).clip(-1, 1)  # with few values, most products are equal
    hidden = [draw.permutation(100)[:count] for count in (0, 1, 5, 30)]
    blocks = ((begin, rows[begin : begin + size]) for begin in range(0, 100, size))
    near, products = most_similar(rows[:4], blocks, 9, hidden)
    expected, values = by_sorting(rows[:4], rows, 9, hidden)
    np.testing.assert_allclose(products, values, atol=1e-6)
    if levels is not None:  # exact products: of equals the first
        np.testing.assert_array_equal(near, expected)


def test_fewer_rows_than_wanted():
    rows = np.eye(3, dtype=np.float32)
    near, products = most_similar(rows, [(0, rows)], 5, [np.array([row]) for row in range(3)])
    assert near.shape == products.shape == (3, 3)
    assert np.isneginf(products[:, -1]).all()
    np.testing.assert_array_equal(near[:, -1], [0, 1, 2])


def test_ranks_of_equals_follow_their_order():
    np.testing.assert_array_equal(rank(np.array([1.0, 3.0, 1.0, 3.0])), [3, 1, 4, 2])
    assert rank(np.zeros(0)).shape == (0,)
