"""The scopes of a search: each against a float64 brute force."""

import numpy as np
import pytest
import torch
from neighbours_example import brute

from detect import Embeddings, KDistance, Neighbours, NeighbourSearch, find_neighbours
from detect.search import knn


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
    from detect.search import neighbours

    return neighbours


def test_batches_follow_the_seed():
    search = [NeighbourSearch(scope="batch", batch_size=40, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (find_neighbours(pairs(), 3, s).distances for s in search)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def rows_of(e: Embeddings, kind: str) -> np.ndarray:
    """What a search of that modality asks about."""
    return {"text": e.text, "pair": np.concatenate([e.image, e.text], axis=1)}.get(kind, e.image)


@pytest.mark.parametrize("kind", ["text", "pair"])
@pytest.mark.parametrize("normalise", [False, True])
def test_texts_and_pairs_are_searched_among_their_kind(kind, normalise):
    e = pairs()
    x = rows_of(e.normalised() if normalise else e, kind).astype(np.float64)
    table = find_neighbours(e, 5, NeighbourSearch(modality=kind, normalise=normalise))
    distances, rows = brute(x, x, 5, np.arange(len(x)))
    np.testing.assert_allclose(table.distances, distances, rtol=1e-5)
    np.testing.assert_array_equal(table.indices, rows)
    np.testing.assert_array_equal(table.queries, np.arange(len(e)))


def test_the_squared_distance_of_pairs_is_the_sum_of_both():
    e = pairs(2)
    image, text, pair = (
        find_neighbours(e, 1, NeighbourSearch(modality=kind)).distances[0, 0] for kind in ("image", "text", "pair")
    )
    assert pair**2 == pytest.approx(image**2 + text**2, rel=1e-5)


@pytest.mark.parametrize("kind", ["joint", "image", "text", "pair"])
def test_reference_scope_searches_samples_among_the_reference_only(kind):
    e, reference = pairs(30), pairs(80)
    joint = kind == "joint"
    base = np.concatenate([reference.image, reference.text]) if joint else rows_of(reference, kind)
    table = find_neighbours(e, 4, NeighbourSearch(scope="reference", modality=kind), reference)
    assert len(table.distances) == len(base) + 30
    asked, near = brute(rows_of(e, kind), base, 4)
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


def test_progress_counts_every_query():
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
        KDistance(k=8, reference_set=np.eye(8)).score(np.eye(8))


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
    with pytest.raises(ValueError, match="modality must be one of image, text, joint, pair, got 'texts'"):
        NeighbourSearch(modality="texts")
    with pytest.raises(ValueError, match="memory_mb must be at least 1, got 0"):
        NeighbourSearch(memory_mb=0)
    with pytest.raises(ValueError, match="needs a reference set"):
        find_neighbours(pairs(), 3, NeighbourSearch(scope="reference"))
    with pytest.raises(ValueError, match="samples are 12 wide, the reference 8"):
        find_neighbours(pairs(), 3, NeighbourSearch(scope="reference"), np.eye(8))
    for modality in ("text", "joint", "pair"):
        with pytest.raises(ValueError, match=f"modality '{modality}' needs text embeddings"):
            find_neighbours(Embeddings.of(np.eye(8)), 3, NeighbourSearch(modality=modality))
        search = NeighbourSearch(scope="reference", modality=modality)
        with pytest.raises(ValueError, match=f"modality '{modality}' needs text embeddings"):
            find_neighbours(pairs(), 3, search, np.eye(12))
    with pytest.raises(ValueError, match="convention 'paper_code' needs modality image or joint"):
        KDistance(k=3, modality="text", convention="paper_code")
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5"):
        find_neighbours(pairs(), 5, NeighbourSearch()).at(6)


def test_products_keep_their_precision_and_the_programs_settings_stay(monkeypatch):
    """TF32 and partial sums in bfloat16, which a program may allow, would break equation (3) of docs/search.md."""
    cuda, cpu = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul
    before = cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction
    seen = []
    rerank = knn.Search.rerank

    def noting(*arguments):
        seen.append((cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction))
        return rerank(*arguments)

    monkeypatch.setattr(knn.Search, "rerank", noting)
    try:
        cuda.fp32_precision, cuda.allow_bf16_reduced_precision_reduction = "tf32", True
        find_neighbours(Embeddings.of(np.random.default_rng(0).standard_normal((50, 4))), 3, NeighbourSearch())
        assert (cuda.fp32_precision, cuda.allow_bf16_reduced_precision_reduction) == ("tf32", True)
    finally:
        cuda.fp32_precision, cpu.fp32_precision, cuda.allow_bf16_reduced_precision_reduction = before
    assert set(seen) == {("ieee", "ieee", False)}
