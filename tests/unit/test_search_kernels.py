"""The kernels of the GPU's search, run on the CPU by Triton's interpreter, against a float64 brute force."""

import importlib
import logging
import os
import re
import sys

import numpy as np
import pytest
import torch
from neighbours_example import check, cloud

from detect.search import candidates, knn, tiles, transfer


@pytest.fixture
def kernels(monkeypatch):
    """The module, interpreted, and taken for every search; few large programs, as each costs milliseconds."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("there is a GPU: `python -m experiments.bench gpu` checks the kernels as they are compiled")
    monkeypatch.delitem(sys.modules, "detect.search.kernels", raising=False)
    module = importlib.import_module("detect.search.kernels")
    monkeypatch.setattr(module, "LISTS", 512)
    monkeypatch.setattr(module, "PAIRS", 512)
    monkeypatch.setitem(module.BLOCK, "ROWS", 256)
    monkeypatch.setitem(module.BLOCK, "COLUMNS", 256)
    monkeypatch.setattr(candidates, "MIN_PARTITION_ROWS", 10**9)
    monkeypatch.setattr(candidates, "MIN_TILED_ROWS", 64)
    monkeypatch.setattr(candidates, "EXTRA_ON_GPU", 2)
    monkeypatch.setattr(tiles, "TILE", 32)
    for user in (candidates, knn):
        monkeypatch.setattr(user, "kernels", lambda device: module)
    yield module
    sys.modules.pop("detect.search.kernels", None)


def _searched(x: np.ndarray, k: int, monkeypatch, bfloat16: bool = True) -> None:
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: bfloat16)
    own = np.arange(len(x))
    check(knn.nearest(x, x, k, self_rows=own, memory_mb=1, device="cpu"), x, x, k, own)


@pytest.mark.parametrize("name", ["gauss", "clusters", "duplicates", "offset near duplicates", "tiny"])
def test_exact_to_1e5_relative(name, kernels, monkeypatch):
    _searched(cloud(name, 300, 70), 3, monkeypatch)


def test_several_sides_in_float32_and_another_width(kernels, monkeypatch):
    _searched(cloud("clusters", 401, 65), 5, monkeypatch, bfloat16=False)


def test_lists_that_overflow_are_found_out(kernels, monkeypatch, caplog):
    monkeypatch.setattr(kernels, "capacity", lambda k: k + 1)
    for extra in ("EXTRA", "EXTRA_ON_GPU"):
        monkeypatch.setattr(candidates, extra, 0)
    with caplog.at_level(logging.DEBUG, logger="detect.search.knn"):
        _searched(cloud("gauss", 90, 70), 3, monkeypatch)
    assert int(re.search(r"(\d+) of 90 queries were searched again", caplog.text).group(1)) > 0


@pytest.mark.parametrize("kind", ["one point", "sorted"])
def test_rows_that_meet_many_neighbours_at_once(kind, kernels, monkeypatch):
    x = cloud("clusters", 90, 70)
    if kind == "one point":
        x[:] = x[0]
    else:
        x = x[np.lexsort(x.T[:1])]
    _searched(x, 3, monkeypatch)


def test_sides_cover_all_rows_once(kernels):
    for n, most in ((10, 100), (700, 256), (1_000_000, 8192), (65, 64)):
        sides = kernels._sides(n, most)
        assert [row for side in sides for row in range(side.start, side.stop)] == list(range(n))
        assert max(side.stop - side.start for side in sides) <= most + 64


def test_ties_go_to_the_lower_row(kernels, monkeypatch):
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: True)
    x = cloud("gauss", 40, 70)[np.arange(200) % 40]
    found = knn.nearest(x, x, 3, self_rows=np.arange(200), memory_mb=1, device="cpu")
    expected = np.stack([[row for row in range(i % 40, 200, 40) if row != i][:3] for i in range(200)])
    np.testing.assert_array_equal(found.indices, expected)
    assert not found.distances.any()


def test_kernels_that_fail_give_way_to_torch(monkeypatch, caplog, kernels):
    monkeypatch.undo()
    candidates._working_kernels.cache_clear()
    for outcome in (lambda device: False, _fail):
        monkeypatch.setitem(sys.modules, "detect.search.kernels", kernels)
        monkeypatch.setattr("detect.search.kernels", kernels, raising=False)
        monkeypatch.setattr(kernels, "works_on", outcome)
        assert candidates.kernels(torch.device("cuda:7")) is None
        candidates._working_kernels.cache_clear()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert candidates.kernels(torch.device("cpu")) is None


def _fail(device):
    raise RuntimeError("no such device")


def test_arrays_stay_as_they_are_on_the_cpu():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    there = transfer.to_device(array, torch.device("cpu"))
    assert there.data_ptr() == array.ctypes.data
    np.testing.assert_array_equal(transfer.to_host(there), array)


def test_pieces_cover_all_rows_and_are_not_taken_before_they_are_free(monkeypatch):
    monkeypatch.setattr(transfer, "PIECE", 48)  # 4 rows of 3 numbers
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, pin_memory=False, **named: empty(*given, **named))
    busy, seen = set(), []

    def step(block, piece):
        assert piece.data_ptr() not in busy
        busy.add(piece.data_ptr())
        seen.extend(range(block.start, block.stop))
        assert len(piece) == block.stop - block.start
        return lambda: busy.remove(piece.data_ptr())

    transfer._in_pieces(torch.zeros(11, 3), step)
    assert seen == list(range(11))
    assert not busy
