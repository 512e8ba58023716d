"""The neighbour engine against a float64 brute force: every scope, every exact backend, hard cases."""

import numpy as np
import pytest
import torch

from detect import (
    Embeddings,
    KDistance,
    Neighbours,
    NeighbourSearch,
    cells,
    find_neighbours,
    finders,
    nearest,
    products,
)

EXACT = ["float32", "bfloat16", "cells", "faiss"]


@pytest.fixture(params=EXACT)
def backend(request, monkeypatch) -> str:
    """Each exact way to search: products in both precisions, whatever this processor prefers, and cells, whatever
    they spare."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
        return "faiss"
    monkeypatch.setattr(finders, "fast_bfloat16", lambda device: request.param == "bfloat16")
    if request.param == "cells":
        monkeypatch.setattr(finders, "LEAST_ROWS", 1)
        monkeypatch.setattr(finders, "WORTH", (2.0, 2.0))
        monkeypatch.setattr(cells, "FIRST", 30)
    return "torch"


def brute(queries: np.ndarray, base: np.ndarray, k: int, own: np.ndarray | None = None):
    """Distances (q, k) in float64 and rows (q, k), ties to the lower row."""
    base = base.astype(np.float64)
    distances, rows = np.empty((len(queries), k)), np.empty((len(queries), k), dtype=int)
    for i, query in enumerate(queries.astype(np.float64)):
        away = np.sqrt(((base - query) ** 2).sum(axis=1))
        if own is not None:
            away[own[i]] = np.inf
        rows[i] = np.argsort(away, kind="stable")[:k]
        distances[i] = away[rows[i]]
    return distances, rows


def check(found: nearest.Nearest, queries, base, k, own=None) -> None:
    """Distances equal to 1e-5 relative, and each row found really that far away."""
    true, _ = brute(queries, base, k, own)
    np.testing.assert_allclose(found.distances, true, rtol=1e-5, atol=1e-30)
    apart = base.astype(np.float64)[found.indices] - queries.astype(np.float64)[:, None]
    np.testing.assert_allclose(np.sqrt((apart**2).sum(axis=2)), true, rtol=1e-5, atol=1e-30)
    assert all(len(set(row)) == k for row in found.indices.tolist())
    if own is not None:
        assert not (found.indices == own[:, None]).any()


def cloud(name: str, n: int = 700, d: int = 96) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n, d))
    if name == "clusters":
        x = rng.normal(size=(7, d))[np.arange(n) % 7] + 0.1 * x
    elif name == "near duplicates":
        x = x[np.arange(n) // 40] + 1e-5 * x
    elif name == "duplicates":
        x = x[np.arange(n) // 40]
    elif name == "offset":
        x = x + 3e3
    elif name == "offset near duplicates":
        x = x[np.arange(n) // 40] * 10 + 300 + 1e-3 * x
    elif name == "one far away":
        x[3] *= 1e6
    elif name == "one dimension that counts":
        x = x * 1e-3
        x[:, 0] += 100 * rng.normal(size=n)
    elif name == "tiny":
        x = x * 1e-12
    return x.astype(np.float32)


CLOUDS = [
    "gauss", "clusters", "near duplicates", "duplicates", "offset", "offset near duplicates", "one far away",
    "one dimension that counts", "tiny",
]  # fmt: skip


@pytest.mark.parametrize("name", CLOUDS)
def test_exact_to_1e5_relative(name, backend):
    x = cloud(name)
    own = np.arange(len(x))
    check(nearest.nearest(x, x, 9, own=own, backend=backend), x, x, 9, own)


@pytest.mark.parametrize("name", ["gauss", "duplicates"])
def test_queries_that_are_no_rows_of_the_base(name, backend):
    x = cloud(name)
    check(nearest.nearest(x[:50] + 1, x[50:], 5, backend=backend), x[:50] + 1, x[50:], 5)


def test_a_large_base_is_searched_by_groups_of_columns(backend, monkeypatch):
    monkeypatch.setattr(finders, "GROUP", 4)
    x = cloud("clusters", 1001, 70)
    own = np.arange(len(x))
    check(nearest.nearest(x.copy(), x, 3, own=own, backend=backend), x, x, 3, own)


@pytest.mark.parametrize("kind", ["sorted", "duplicates", "one point", "an outlier"])
def test_tiles_that_serve_both_of_their_sides(backend, monkeypatch, kind):
    monkeypatch.setattr(products, "TILE", 64)
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
    check(nearest.nearest(x, x, 3, own=own, backend=backend), x, x, 3, own)
    check(nearest.nearest(x, x, 43, own=own, backend=backend), x, x, 43, own)


def test_neighbours_are_found_when_most_queries_must_be_searched_twice(backend, monkeypatch):
    """All rows almost equally far from each other: no short list of candidates can be proven complete."""
    x = np.eye(300, dtype=np.float32) + 1e-4 * cloud("gauss", 300, 300)
    again = []
    settle = nearest.Search.settle
    monkeypatch.setattr(
        nearest.Search, "settle",
        lambda *given: again.append(result := settle(*given)) or result,
    )  # fmt: skip
    own = np.arange(len(x))
    check(nearest.nearest(x, x, 5, own=own, backend=backend), x, x, 5, own)
    if backend == "torch" and finders.fast_bfloat16("cpu"):
        assert sum(int(unsure.sum()) for *_, unsure in again) > 150


def test_cells_are_taken_where_they_spare_most_pairs_and_only_there(monkeypatch, caplog):
    shares = []
    within = cells._within

    def watched(points, near, *rest):
        shares.append(float(near.float().mean()))
        return within(points, near, *rest)

    monkeypatch.setattr(cells, "_within", watched)
    monkeypatch.setattr(finders, "fast_bfloat16", lambda device: False)
    monkeypatch.setattr(finders, "LEAST_ROWS", 1000)
    for name, taken in (("clusters", True), ("gauss", False)):
        x = cloud(name, 1500)
        own = np.arange(len(x))
        with caplog.at_level("DEBUG", logger="detect.finders"):
            check(nearest.nearest(x, x, 9, own=own), x, x, 9, own)
        assert bool(shares) == taken
        if taken:
            foretold = float(caplog.messages[-1].split()[2])
            assert shares[0] == pytest.approx(foretold, abs=0.1)
            assert shares[0] < finders.WORTH[0]
        shares.clear()


def test_ties_go_to_the_lower_row(backend):
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 4), axis=-1).reshape(-1, 4).astype(np.float32)
    x = np.concatenate([grid, grid])  # a distance of 0 to the copy, then 8 ties at a distance of 1, and so on
    x = np.pad(x, ((0, 0), (0, 60)))
    own = np.arange(len(x))
    found = nearest.nearest(x, x, 12, own=own, backend=backend)
    distances, rows = brute(x, x, 12, own)
    np.testing.assert_array_equal(found.indices, rows)
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)


def test_the_memory_bound_changes_nothing(backend):
    x = cloud("clusters", 500)
    own = np.arange(len(x))
    wide = nearest.nearest(x, x, 5, own=own, backend=backend, memory_mb=256)
    tight = nearest.nearest(x, x, 5, own=own, backend=backend, memory_mb=1)
    np.testing.assert_array_equal(wide.indices, tight.indices)
    np.testing.assert_array_equal(wide.distances, tight.distances)


def test_every_way_to_search_finds_the_same(monkeypatch):
    x = cloud("clusters")
    own = np.arange(len(x))
    tables = [nearest.nearest(x, x, 7, own=own, backend="faiss")]
    for half in (False, True):
        monkeypatch.setattr(finders, "fast_bfloat16", lambda device, half=half: half)
        tables.append(nearest.nearest(x, x, 7, own=own, backend="torch"))
    for table in tables[1:]:
        np.testing.assert_array_equal(table.indices, tables[0].indices)
        np.testing.assert_allclose(table.distances, tables[0].distances, rtol=1e-6)


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])
def test_approximate_backends_measure_their_recall(backend):
    pytest.importorskip("faiss")
    x = cloud("gauss", 2000, 24)
    own = np.arange(len(x))
    found = nearest.nearest(x, x, 6, own=own, backend=backend)
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
    monkeypatch.setattr(finders, "fast_bfloat16", lambda device: False)
    assert finders.choose(10_000, 10_000, itself=False, device="cpu")[0] == "faiss"
    assert finders.choose(10_000, 10_000, itself=True, device="cpu")[0] == "torch"
    with caplog.at_level("INFO", logger="detect"):
        find_neighbours(Embeddings.of(x), 3, NeighbourSearch(), device="cpu")
    assert "backend torch" in caplog.text
    assert "each product serves the rows and the columns of its tile" in caplog.text


# --- scopes -------------------------------------------------------------------------------------------------------


def pairs(n: int = 230, d: int = 12) -> Embeddings:
    rng = np.random.default_rng(3)
    image, text = rng.normal(size=(2, n, d)).astype(np.float32)
    return Embeddings(np.arange(n) * 3, image, text)


def test_full_scope_searches_each_sample_among_all_others():
    e = pairs()
    table = find_neighbours(e, 6, NeighbourSearch())
    distances, rows = brute(e.image, e.image, 6, np.arange(len(e)))
    np.testing.assert_allclose(table.distances, distances, rtol=1e-5)
    np.testing.assert_array_equal(table.indices, rows)
    np.testing.assert_array_equal(table.queries, np.arange(len(e)))


def test_normalised_search_is_a_search_among_unit_vectors():
    e = pairs()
    table = find_neighbours(e, 4, NeighbourSearch(normalise=True))
    x = e.image.astype(np.float64)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    np.testing.assert_allclose(table.distances, brute(x, x, 4, np.arange(len(x)))[0], rtol=1e-5)


@pytest.mark.parametrize("n", [230, 200, 50, 40])  # a short last batch, none, a batch and a bit, one batch
def test_batch_scope_asks_about_every_sample_in_exactly_one_batch_of_full_size(n):
    e, k, size = pairs(n), 5, min(n, 40)
    table = find_neighbours(e, k, NeighbourSearch(scope="batch", batch_size=40, seed=5))
    batches = len(table.distances) // size
    assert len(table.distances) == batches * size == -(-n // size) * size
    assert len(set(table.queries.tolist())) == n
    assert (table.indices // size == np.arange(len(table.indices))[:, None] // size).all()  # none leaves its batch

    # Which sample each row of the table is, from the definition of the batches.
    rows = np.concatenate([batch for batch, _ in neighbours_module().batch_rows(n, 40, 5)])
    new = np.concatenate([np.arange(size) < count for _, count in neighbours_module().batch_rows(n, 40, 5)])
    assert sorted(rows[new].tolist()) == list(range(n))
    np.testing.assert_array_equal(rows[table.queries], np.arange(n))
    for batch in range(batches):
        part = rows[batch * size : (batch + 1) * size]
        assert len(set(part.tolist())) == size  # fill-up samples are not among the batch's own
        own = np.arange(size)
        true, near = brute(e.image[part], e.image[part], k, own)
        np.testing.assert_allclose(table.distances[batch * size : (batch + 1) * size], true, rtol=1e-5)
        np.testing.assert_array_equal(table.indices[batch * size : (batch + 1) * size] - batch * size, near)


def neighbours_module():
    from detect import neighbours

    return neighbours


def test_batches_follow_the_seed():
    search = [NeighbourSearch(scope="batch", batch_size=40, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (find_neighbours(pairs(), 3, s).distances for s in search)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize("kind", ["joint", "image"])
def test_reference_scope_searches_samples_among_the_reference_only(kind):
    e, reference = pairs(30), pairs(80)
    base = np.concatenate([reference.image, reference.text]) if kind == "joint" else reference.image
    table = find_neighbours(e, 4, NeighbourSearch(scope="reference", modality=kind), reference)
    assert len(table.distances) == len(base) + 30
    asked, near = brute(e.image, base, 4)
    np.testing.assert_allclose(table.distances[table.queries], asked, rtol=1e-5, atol=1e-12)
    np.testing.assert_array_equal(table.indices[table.queries], near)
    among, near = brute(base, base, 4, np.arange(len(base)))
    np.testing.assert_allclose(table.distances[: len(base)], among, rtol=1e-5)
    np.testing.assert_array_equal(table.indices[: len(base)], near)


def test_joint_modality_adds_the_texts_as_rows():
    e = pairs(60)
    both = np.concatenate([e.image, e.text])
    table = find_neighbours(e, 7, NeighbourSearch(modality="joint"))
    distances, rows = brute(both, both, 7, np.arange(120))
    np.testing.assert_allclose(table.distances, distances, rtol=1e-5)
    np.testing.assert_array_equal(table.indices, rows)
    np.testing.assert_array_equal(table.queries, np.arange(60))


def test_joint_batches_hold_the_texts_of_their_own_samples():
    e = pairs(50)
    table = find_neighbours(e, 3, NeighbourSearch(scope="batch", batch_size=20, modality="joint"))
    assert len(table.distances) == 3 * 40
    assert (table.indices // 40 == np.arange(120)[:, None] // 40).all()


def test_a_narrower_table_is_a_part_of_a_wider_one():
    wide = find_neighbours(pairs(), 20, NeighbourSearch())
    narrow = find_neighbours(pairs(), 4, NeighbourSearch())
    np.testing.assert_array_equal(wide.at(4).indices, narrow.indices)
    np.testing.assert_array_equal(wide.at(4).distances, narrow.distances)


def test_a_table_comes_back_from_disk_as_it_was(tmp_path):
    table = find_neighbours(pairs(), 5, NeighbourSearch(scope="batch", batch_size=60))
    table.save(tmp_path)
    again = Neighbours.load(tmp_path)
    for name in ("distances", "indices", "queries"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))


def test_progress_is_told_of_every_query():
    done = []

    class Bar:
        def __init__(self, total, label):
            self.total = total

        def __enter__(self):
            return self

        def __exit__(self, *error):
            assert sum(done) == self.total == 230

        def update(self, count):
            done.append(count)

    find_neighbours(pairs(), 3, NeighbourSearch(), progress=Bar)
    assert sum(done) == 230


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [{"scope": "full"}, {"scope": "batch"}, {"scope": "batch", "batch_size": 5}])
def test_k_beyond_the_scope_is_refused_by_name(scope):
    rows = scope.get("batch_size", 10)
    with pytest.raises(ValueError, match=rf"k must lie in 1\.\.{rows - 1} .* {rows} rows .*got {rows}"):
        find_neighbours(pairs(10), rows, NeighbourSearch(**scope))


def test_k_beyond_the_reference_is_refused():
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.7 for a reference set of 8 rows"):
        KDistance(k=8, reference=np.eye(8)).score(np.eye(8))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(bad):
    x = np.ones((9, 3), np.float32)
    x[[2, 7], 1] = bad
    with pytest.raises(ValueError, match="image embeddings must be finite, but 2 rows are not: 2, 7"):
        KDistance(k=2).score(x)


def test_what_is_not_known_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="scope must be one of full, batch, reference, got 'all'"):
        NeighbourSearch(scope="all")
    with pytest.raises(ValueError, match="backend must be one of auto, torch, faiss, ivf, hnsw, got 'annoy'"):
        NeighbourSearch(backend="annoy")
    with pytest.raises(ValueError, match="modality must be one of image, joint"):
        NeighbourSearch(modality="text")
    with pytest.raises(ValueError, match="memory_mb must be at least 1, got 0"):
        NeighbourSearch(memory_mb=0)
    with pytest.raises(ValueError, match="needs a reference set"):
        find_neighbours(pairs(), 3, NeighbourSearch(scope="reference"))
    with pytest.raises(ValueError, match="samples are 12 wide, the reference 8"):
        find_neighbours(pairs(), 3, NeighbourSearch(scope="reference"), np.eye(8))
    with pytest.raises(ValueError, match="needs text embeddings"):
        find_neighbours(Embeddings.of(np.eye(8)), 3, NeighbourSearch(modality="joint"))
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5"):
        find_neighbours(pairs(), 5, NeighbourSearch()).at(6)


def test_products_keep_their_precision_and_the_programs_settings_stay(monkeypatch):
    """TF32 and partial sums in bfloat16, which a program may allow, would break the proof of `detect.nearest`."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction
    seen = []
    settle = nearest.Search.settle

    def noting(*arguments):
        seen.append((cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction))
        return settle(*arguments)

    monkeypatch.setattr(nearest.Search, "settle", noting)
    try:
        cuda.fp32_precision, cuda.allow_bf16_reduced_precision_reduction = "tf32", True
        find_neighbours(Embeddings.of(np.random.default_rng(0).standard_normal((50, 4))), 3, NeighbourSearch())
        assert (cuda.fp32_precision, cuda.allow_bf16_reduced_precision_reduction) == ("tf32", True)
    finally:
        cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction = before
    assert set(seen) == {("ieee", "ieee", False)}
