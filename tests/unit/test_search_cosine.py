"""The most similar rows by cosine, against a full sort."""

import numpy as np
import pytest

from detect.embeddings import unit
from detect.search.cosine import most_similar


def blocks(x: np.ndarray, size: int):
    return ((begin, x[begin : begin + size]) for begin in range(0, len(x), size))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_most_similar_rows_but_for_the_excluded_ones_whatever_the_blocks(size):
    x = unit(np.random.default_rng(0).normal(size=(50, 6)))
    excluded = [np.array([0]), np.arange(10, 30), np.array([], int)]
    found = most_similar(x[:3], blocks(x, size), 5, excluded)
    for query, out, (rows, cosines) in zip(x, excluded, found, strict=False):
        true = x.astype(np.float64) @ query
        true[out] = -9
        expected = np.argsort(-true, kind="stable")[:5]
        np.testing.assert_array_equal(rows, expected)
        np.testing.assert_allclose(cosines, true[expected], atol=1e-6)


def test_of_equals_the_lower_row_comes_first():
    x = unit(np.ones((9, 4)))
    ((rows, _),) = most_similar(x[:1], blocks(x, 4), 5, [np.array([2])])
    assert rows.tolist() == [0, 1, 3, 4, 5]


def test_excluded_rows_never_fill_a_short_list():
    x = unit(np.eye(3))
    ((rows, cosines),) = most_similar(x[:1], blocks(x, 2), 5, [np.array([0])])
    assert rows.tolist() == [1, 2]
    assert (cosines == 0).all()
