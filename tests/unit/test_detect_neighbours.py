"""The neighbour engine against a float64 brute force: every exact backend, hard cases."""

import numpy as np
import pytest
from neighbours_example import brute, check, cloud

from detect import Embeddings, Neighbours, NeighbourSearch, find_neighbours
from detect.search import candidates, knn, partition, tiles

EXACT = ["float32", "bfloat16", "cells", "faiss"]


@pytest.fixture(params=EXACT)
def backend(request, monkeypatch) -> str:
    """Each exact way to search: products in both precisions, whatever this processor prefers, and cells, whatever
    they spare."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
        return "faiss"
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: request.param == "bfloat16")
    if request.param == "cells":
        monkeypatch.setattr(candidates, "LEAST_ROWS", 1)
        monkeypatch.setattr(candidates, "WORTH", (2.0, 2.0))
        monkeypatch.setattr(partition, "FIRST", 30)
    return "torch"


CLOUDS = [
    "gauss",
    "clusters",
    "near duplicates",
    "duplicates",
    "offset",
    "offset near duplicates",
    "one far away",
    "one dimension that counts",
    "tiny",
]


@pytest.mark.parametrize("name", CLOUDS)
def test_exact_to_1e5_relative(name, backend):
    x = cloud(name)
    own = np.arange(len(x))
    check(knn.nearest(x, x, 9, own=own, backend=backend), x, x, 9, own)


@pytest.mark.parametrize("name", ["gauss", "duplicates"])
def test_queries_that_are_no_rows_of_the_base(name, backend):
    x = cloud(name)
    check(knn.nearest(x[:50] + 1, x[50:], 5, backend=backend), x[:50] + 1, x[50:], 5)


def test_a_large_base_is_searched_by_groups_of_columns(backend, monkeypatch):
    monkeypatch.setattr(candidates, "GROUP", 4)
    x = cloud("clusters", 1001, 70)
    own = np.arange(len(x))
    check(knn.nearest(x.copy(), x, 3, own=own, backend=backend), x, x, 3, own)


@pytest.mark.parametrize("kind", ["sorted", "duplicates", "one point", "an outlier"])
def test_tiles_that_serve_both_of_their_sides(backend, monkeypatch, kind):
    monkeypatch.setattr(tiles, "TILE", 64)
    x = cloud("clusters", 1001, 70)
    if kind == "sorted":
        x = x[np.lexsort(x.T[:1])]
    elif kind == "duplicates":  # more of them at once than a row has room for
        x[100:400] = x[100]
    elif kind == "one point":
        x[:] = x[0]
    else:
        x[500] *= 1e4
    own = np.arange(len(x))
    check(knn.nearest(x, x, 3, own=own, backend=backend), x, x, 3, own)
    check(knn.nearest(x, x, 43, own=own, backend=backend), x, x, 43, own)


def test_neighbours_are_found_when_most_queries_must_be_searched_twice(backend, monkeypatch):
    """All rows almost equally far from each other: no short list of candidates can be proven complete."""
    x = np.eye(300, dtype=np.float32) + 1e-4 * cloud("gauss", 300, 300)
    again = []
    rerank = knn.Search.rerank
    monkeypatch.setattr(
        knn.Search,
        "rerank",
        lambda *given: again.append(result := rerank(*given)) or result,
    )
    own = np.arange(len(x))
    check(knn.nearest(x, x, 5, own=own, backend=backend), x, x, 5, own)
    if backend == "torch" and candidates.fast_bfloat16("cpu"):
        assert sum(int(unsure.sum()) for *_, unsure in again) > 150


def test_cells_are_taken_where_they_spare_most_pairs_and_only_there(monkeypatch, caplog):
    shares = []
    within = partition._within

    def watched(points, near, *rest):
        shares.append(float(near.float().mean()))
        return within(points, near, *rest)

    monkeypatch.setattr(partition, "_within", watched)
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: False)
    monkeypatch.setattr(candidates, "LEAST_ROWS", 1000)
    for name, taken in (("clusters", True), ("gauss", False)):
        x = cloud(name, 1500)
        own = np.arange(len(x))
        with caplog.at_level("DEBUG", logger="detect.search.candidates"):
            check(knn.nearest(x, x, 9, own=own), x, x, 9, own)
        assert bool(shares) == taken
        if taken:
            foretold = float(caplog.messages[-1].split()[2])
            assert shares[0] == pytest.approx(foretold, abs=0.1)
            assert shares[0] < candidates.WORTH[0]
        shares.clear()


def test_ties_go_to_the_lower_row(backend):
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 4), axis=-1).reshape(-1, 4).astype(np.float32)
    x = np.concatenate([grid, grid])  # a distance of 0 to the copy, then 8 ties at a distance of 1, and so on
    x = np.pad(x, ((0, 0), (0, 60)))
    own = np.arange(len(x))
    found = knn.nearest(x, x, 12, own=own, backend=backend)
    distances, rows = brute(x, x, 12, own)
    np.testing.assert_array_equal(found.indices, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)


def test_the_memory_bound_changes_nothing(backend):
    x = cloud("clusters", 500)
    own = np.arange(len(x))
    wide = knn.nearest(x, x, 5, own=own, backend=backend, memory_mb=256)
    tight = knn.nearest(x, x, 5, own=own, backend=backend, memory_mb=1)
    np.testing.assert_array_equal(wide.indices, tight.indices)
    np.testing.assert_array_equal(wide.distances, tight.distances)


def test_every_way_to_search_finds_the_same(monkeypatch):
    x = cloud("clusters")
    own = np.arange(len(x))
    tables = [knn.nearest(x, x, 7, own=own, backend="faiss")]
    for half in (False, True):
        monkeypatch.setattr(candidates, "fast_bfloat16", lambda device, half=half: half)
        tables.append(knn.nearest(x, x, 7, own=own, backend="torch"))
    for table in tables[1:]:
        np.testing.assert_array_equal(table.indices, tables[0].indices)
        np.testing.assert_allclose(table.distances, tables[0].distances, rtol=1e-6)


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_approximate_backends_measure_their_recall(backend):
    pytest.importorskip("faiss")
    x = cloud("gauss", 2000, 24)
    own = np.arange(len(x))
    found = knn.nearest(x, x, 6, own=own, backend=backend)
    _, rows = brute(x, x, 6, own)
    hits = (found.indices[:, :, None] == rows[:, None, :]).any(axis=2).mean()
    assert found.recall < 1 or backend == "hnsw"
    assert found.recall == pytest.approx(hits, abs=0.05)
    assert hits > 0.3
    apart = np.linalg.norm(x[found.indices].astype(np.float64) - x[:, None], axis=2)
    np.testing.assert_allclose(found.distances, apart, rtol=1e-5)
    assert (np.diff(found.distances, axis=1) >= 0).all()
    assert not (found.indices == own[:, None]).any()


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_approximate_backends_serve_the_table_and_its_recall_is_kept(backend, tmp_path):
    pytest.importorskip("faiss")
    embeddings = Embeddings.of(cloud("clusters", 400, 16))
    table = find_neighbours(embeddings, 5, NeighbourSearch(backend=backend))
    table.save(tmp_path)
    assert Neighbours.load(tmp_path).recall == table.recall == table.at(3).recall <= 1


def test_the_choice_of_a_backend_is_told_with_its_reason(caplog, monkeypatch):
    x = cloud("gauss", 60, 8)
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: False)
    assert candidates.choose(10_000, 10_000, itself=False, device="cpu")[0] == "faiss"
    assert candidates.choose(10_000, 10_000, itself=True, device="cpu")[0] == "torch"
    with caplog.at_level("INFO", logger="detect"):
        find_neighbours(Embeddings.of(x), 3, NeighbourSearch(), device="cpu")
    assert "backend torch" in caplog.text
    assert "each product serves the rows and the columns of its tile" in caplog.text
