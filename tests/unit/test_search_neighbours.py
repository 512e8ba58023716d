"""The neighbour engine against a float64 brute force: every exact backend, hard cases."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from neighbours_example import brute, check, cloud

from detect import Embeddings, Neighbours, NeighbourSearch, find_neighbours
from detect.search import candidates, knn, partition, tiles

EXACT = ["float32", "bfloat16", "float32 tiles", "bfloat16 tiles", "cells", "faiss"]


@pytest.fixture(params=EXACT)
def backend(request, monkeypatch) -> str:
    """Each exact way to search, whichever this processor prefers for so few rows."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
        return "faiss"
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: "bfloat16" in request.param)
    if "tiles" in request.param or request.param == "cells":
        monkeypatch.setattr(tiles, "TILE", 64)
        monkeypatch.setattr(candidates, "MIN_TILED_ROWS", 128)
    if request.param == "cells":
        monkeypatch.setattr(candidates, "MIN_PARTITION_ROWS", 1)
        monkeypatch.setattr(candidates, "MAX_SHARE", {"float32": 2.0, "bfloat16": 2.0})
        monkeypatch.setattr(partition, "FIRST_ROWS", 30)
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
    check(knn.nearest(x, x, 9, self_rows=own, backend=backend), x, x, 9, own)


@pytest.mark.parametrize("name", ["gauss", "duplicates"])
def test_queries_that_are_no_rows_of_the_base(name, backend):
    x = cloud(name)
    check(knn.nearest(x[:50] + 1, x[50:], 5, backend=backend), x[:50] + 1, x[50:], 5)


def test_a_copy_of_the_base_has_the_neighbours_of_the_base(backend):
    x = cloud("clusters", 1001, 70)
    own = np.arange(len(x))
    check(knn.nearest(x.copy(), x, 3, self_rows=own, backend=backend), x, x, 3, own)


@pytest.mark.parametrize("rows", [127, 128])
def test_a_single_tile_is_left_to_plain_products(rows, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", 64)
    monkeypatch.setattr(candidates, "MIN_TILED_ROWS", 128)
    taken = []
    tile_candidates = candidates.tile_candidates
    monkeypatch.setattr(
        candidates, "tile_candidates", lambda *given: taken.append(given) or tile_candidates(*given)
    )
    x = cloud("gauss", rows, 20)
    own = np.arange(rows)
    check(knn.nearest(x, x, 3, self_rows=own, device="cpu"), x, x, 3, own)
    assert bool(taken) == (rows >= 128)


@pytest.mark.parametrize("kind", ["sorted", "duplicates", "one point", "an outlier"])
def test_rows_that_meet_many_neighbours_at_once(backend, kind):
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
    check(knn.nearest(x, x, 3, self_rows=own, backend=backend), x, x, 3, own)
    check(knn.nearest(x, x, 43, self_rows=own, backend=backend), x, x, 43, own)


def test_neighbours_are_found_when_many_queries_must_be_searched_twice(backend, monkeypatch):
    """All rows almost equally far from each other: no short list of candidates can be proven complete."""
    x = np.eye(300, dtype=np.float32) + 1e-4 * cloud("gauss", 300, 300)
    again = []
    rerank = knn.Search.rerank
    monkeypatch.setattr(knn.Search, "rerank", lambda *given: again.append(result := rerank(*given)) or result)
    own = np.arange(len(x))
    check(knn.nearest(x, x, 5, self_rows=own, backend=backend), x, x, 5, own)
    if backend == "torch" and candidates.fast_bfloat16("cpu"):
        assert sum(int(incomplete.sum()) for *_, incomplete in again) > 100


def test_cells_are_taken_where_they_spare_most_pairs_and_only_there(monkeypatch, caplog):
    shares = []
    within = partition._pairs_within_bound

    def watched(points, compared, *rest):
        shares.append(float(compared.float().mean()))
        return within(points, compared, *rest)

    monkeypatch.setattr(partition, "_pairs_within_bound", watched)
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: False)
    monkeypatch.setattr(candidates, "MIN_PARTITION_ROWS", 1000)
    monkeypatch.setattr(tiles, "TILE", 512)
    for name, taken in (("clusters", True), ("gauss", False)):
        x = cloud(name, 1500)
        own = np.arange(len(x))
        with caplog.at_level("DEBUG", logger="detect.search.candidates"):
            check(knn.nearest(x, x, 9, self_rows=own), x, x, 9, own)
        assert bool(shares) == taken
        if taken:
            foretold = float(caplog.messages[-1].split()[2])
            assert shares[0] == pytest.approx(foretold, abs=0.1)
            assert shares[0] < candidates.MAX_SHARE["float32"]
        shares.clear()


@pytest.mark.parametrize("d", [16, 64, 512, 1024])
@pytest.mark.parametrize("kind", ["noise", "one direction", "signs", "positive"])
def test_products_are_rounded_no_more_than_equation_3_allows(kind, d):
    """eps assumes how the kernels sum; rows along one direction are the worst case known."""
    rng = np.random.default_rng(0)
    x = {
        "noise": rng.normal(size=(400, d)),
        "one direction": rng.normal(size=(400, 1)) * np.ones(d),
        "signs": rng.normal(size=(400, 1)) * np.sign(rng.normal(size=(400, d))),
        "positive": rng.random((400, d)),
    }[kind].astype(np.float32)
    rows = torch.from_numpy(x)
    search = knn.Search(rows, 1, 256, lambda done: None)
    search.centre = torch.zeros(d)  # about which the rows keep their kind
    square = search.square.double()
    products = torch.addmm(search.square[None], rows, rows.T, alpha=-2) + search.square[:, None]
    left, right = (torch.zeros(400, tiles.extended_width(d)) for _ in range(2))
    tiles.extend(rows, left, True)
    tiles.extend(rows, right, False)
    true = torch.cdist(rows.double(), rows.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    eps = search.eps * (square[:, None] + square)
    assert ((products - true).abs() <= eps).all()
    extended = 2 * (left @ right.T).double()
    assert ((extended - true).abs() <= eps + 2.0**-22 * extended.abs()).all()


def test_ties_go_to_the_lower_row(backend):
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 4), axis=-1).reshape(-1, 4).astype(np.float32)
    x = np.concatenate([grid, grid])  # a distance of 0 to the copy, then 8 ties at a distance of 1, and so on
    x = np.pad(x, ((0, 0), (0, 60)))
    own = np.arange(len(x))
    found = knn.nearest(x, x, 12, self_rows=own, backend=backend)
    distances, rows = brute(x, x, 12, own)
    np.testing.assert_array_equal(found.indices, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)


def test_the_memory_bound_changes_nothing(backend):
    x = cloud("clusters", 500)
    own = np.arange(len(x))
    wide = knn.nearest(x, x, 5, self_rows=own, backend=backend, memory_mb=256)
    tight = knn.nearest(x, x, 5, self_rows=own, backend=backend, memory_mb=1)
    np.testing.assert_array_equal(wide.indices, tight.indices)
    np.testing.assert_array_equal(wide.distances, tight.distances)


def test_every_way_to_search_finds_the_same(monkeypatch):
    x = cloud("clusters")
    own = np.arange(len(x))
    tables = [knn.nearest(x, x, 7, self_rows=own, backend="faiss")]
    for half in (False, True):
        monkeypatch.setattr(candidates, "fast_bfloat16", lambda device, half=half: half)
        tables.append(knn.nearest(x, x, 7, self_rows=own, backend="torch"))
    for table in tables[1:]:
        np.testing.assert_array_equal(table.indices, tables[0].indices)
        np.testing.assert_allclose(table.distances, tables[0].distances, rtol=1e-6)


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_approximate_backends_measure_their_recall(backend):
    pytest.importorskip("faiss")
    x = cloud("gauss", 2000, 24)
    own = np.arange(len(x))
    found = knn.nearest(x, x, 6, self_rows=own, backend=backend)
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


def test_the_choice_of_a_backend_is_logged_with_its_reason(caplog, monkeypatch):
    monkeypatch.setattr(candidates, "fast_bfloat16", lambda device: False)
    assert candidates.choose(10_000, 10_000, among_themselves=False, device="cpu")[0] == "faiss"
    reasons = {rows: candidates.choose(10_000, rows, device="cpu") for rows in (2048, 10_000)}
    assert reasons == {
        2048: ("torch", "each search is small"),
        10_000: ("torch", "each product serves the rows and the columns of its tile"),
    }
    with caplog.at_level("INFO", logger="detect"):
        find_neighbours(Embeddings.of(cloud("gauss", 60, 8)), 3, NeighbourSearch(), device="cpu")
    assert "backend torch, as each search is small" in caplog.text


def test_the_equations_that_the_code_refers_to_are_on_the_page():
    page = (Path(__file__).parents[2] / "docs/search.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^    .* {2,}\((\d+)\)$", page, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    code = "".join(file.read_text(encoding="utf-8") for file in Path(candidates.__file__).parent.glob("*.py"))
    assert {int(number) for number in re.findall(r"[Ee]quation \((\d+)\)", code)} == set(numbers) - {
        9
    }  # (9) leads to (10)
