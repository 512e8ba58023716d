"""Selection and sorting by NumPy, against torch's."""

import numpy as np
import pytest
import torch

from detect.search import selection
from detect.search.selection import smallest, sorted_by_distance


@pytest.mark.parametrize(("rows", "columns", "count"), [(40, 300, 20), (3, 50, 50), (1, 1, 1), (70, 129, 7)])
@pytest.mark.parametrize("threads", [1, 2])
def test_the_smallest_are_those_of_a_sort_ties_by_column(rows, columns, count, threads, monkeypatch):
    monkeypatch.setattr(selection, "CACHED", 4096)  # several blocks
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    generator = torch.Generator().manual_seed(0)
    products = (torch.rand((rows, columns), generator=generator) * 40).bfloat16()  # many are equal
    values, found = smallest(products, count)
    expected, order = products.float().sort(dim=1, stable=True)
    assert values.dtype == torch.bfloat16
    assert torch.equal(values.float(), expected[:, :count])
    assert torch.equal(found, order[:, :count])


def test_equal_rows_are_cut_to_the_lowest_columns():
    values, found = smallest(torch.ones(5, 40, dtype=torch.bfloat16), 3)
    assert torch.equal(values, torch.ones(5, 3, dtype=torch.bfloat16))
    assert torch.equal(found, torch.arange(3).expand(5, 3))


def test_distances_are_sorted_ties_by_row_and_none_comes_first_among_its_equals():
    rng = np.random.default_rng(0)
    distances = torch.from_numpy(rng.choice(np.float32([0.0, 1e-30, 0.5, 0.5000001, 3.0, np.inf]), (50, 31)))
    rows = torch.from_numpy(rng.integers(-1, 2**31 - 1, (50, 31)))
    near, found = sorted_by_distance(distances, rows)
    order = np.lexsort((rows.numpy(), distances.numpy()), axis=1)
    assert np.array_equal(near.numpy(), np.take_along_axis(distances.numpy(), order, 1))
    assert np.array_equal(found.numpy(), np.take_along_axis(rows.numpy(), order, 1))
