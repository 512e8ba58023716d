"""Neighbour tables of other libraries give the scores of our own; what is no such table is refused in one line."""

import numpy as np
import pytest
from scipy.sparse import coo_matrix, csr_array, csr_matrix
from sklearn.neighbors import KNeighborsTransformer, NearestNeighbors, kneighbors_graph

from detect import DAO, LID, LOF, SLOF, Neighbours

K = 9


@pytest.fixture(scope="module")
def x():
    x = np.random.default_rng(0).standard_normal((150, 8)).astype(np.float32)
    x[40:45] = x[40]
    return x


def same_scores(table, x, **options):
    assert table.k == K
    assert table.distances.dtype == np.float32
    assert not (table.indices == np.arange(len(x))[:, None]).any()
    for kind in (DAO, LID, LOF, SLOF):
        made = kind(k=K, **options)
        np.testing.assert_allclose(made.score(x, table), made.score(x), rtol=2e-3)
        np.testing.assert_array_equal(made.score(x, table), made.score_neighbours(table))


def test_arrays_of_faiss(x):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatL2(8)
    index.add(x)
    same_scores(Neighbours.from_arrays(*index.search(x, K + 1), metric="sqeuclidean", embeddings=x), x)


@pytest.mark.parametrize("given", [None, "the samples"])
def test_arrays_of_scikit_learn_with_and_without_self(x, given):
    search = NearestNeighbors(n_neighbors=K + (given is not None)).fit(x)
    found = search.kneighbors() if given is None else search.kneighbors(x)
    same_scores(Neighbours.from_arrays(*found, metric="euclidean", embeddings=x), x)


def test_graphs_in_every_format(x):
    graph = kneighbors_graph(x, K, mode="distance")
    by_column = graph.copy()
    by_column.sort_indices()
    with_self = KNeighborsTransformer(n_neighbors=K, mode="distance").fit_transform(x)
    for made in (graph, by_column, graph.tocsc(), coo_matrix(graph), csr_array(graph), with_self):
        same_scores(Neighbours.from_graph(made, metric="euclidean", embeddings=x), x)


def test_the_graph_of_cleanlab(x):
    pytest.importorskip("cleanlab", reason="optional extra `detectors`")
    from cleanlab.internal.neighbor.knn_graph import create_knn_graph_and_index

    graph, _ = create_knn_graph_and_index(x, n_neighbors=K)
    same_scores(Neighbours.from_graph(graph, metric="cosine", embeddings=x), x, normalise=True)


def test_of_more_duplicates_than_neighbours_some_lack_themselves():
    distances, indices = np.zeros((5, 3)), np.tile([0, 1, 2], (5, 1))
    table = Neighbours.from_arrays(distances, indices, metric="euclidean")
    np.testing.assert_array_equal(table.indices, [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]])


def arrays(x):
    return [part.copy() for part in NearestNeighbors(n_neighbors=K).fit(x).kneighbors()]


def spoilt(x, change):
    distances, indices = arrays(x)
    return change(distances, indices)


def put(array, where, value):
    array[where] = value
    return array


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d, i: (d[:, :4], i), r"must both be \(n, k\), got shapes \(150, 4\) and \(150, 9\)"),
        (lambda d, i: (d[0], i[0]), r"must both be \(n, k\), got shapes \(9,\)"),
        (lambda d, i: (d[:0], i[:0]), r"must both be \(n, k\), got shapes \(0, 9\)"),
        (lambda d, i: (i, d), "indices integers, got int64 and float64"),
        (lambda d, i: (d, put(i, (3, 8), -1)), "indices must lie in 0..149, .* but row 3 has -1 at column 8"),
        (lambda d, i: (d, put(i, (3, 0), 150)), "but row 3 has 150 at column 0"),
        (lambda d, i: (put(d, (2, 8), np.inf), i), "distances must be finite, but row 2 has inf at column 8"),
        (lambda d, i: (put(d, (2, 0), -1), i), "must not be below 0: similarities are no distances, but row 2"),
        (lambda d, i: (d[:, ::-1], i), "must ascend in each row: similarities are no distances, but row 0"),
        (lambda d, i: (d, put(i, (5, 1), i[5, 0])), "indices must name each neighbour once, but row 5"),
        (lambda d, i: (d, put(i, (5, 0), 5)), "row 5 holds itself, and row 0 does not"),
        (lambda d, i: (d**2, i), "fit metric='euclidean' and the embeddings, but row 0 and its neighbour"),
        (lambda d, i: (d, np.roll(i, 1, axis=0)), "metric='euclidean' and the embeddings|holds itself"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(x, change, said):
    with pytest.raises(ValueError, match=said) as refusal:
        Neighbours.from_arrays(*spoilt(x, change), metric="euclidean", embeddings=x)
    assert "\n" not in str(refusal.value)


def test_other_metrics_and_embeddings_are_refused(x):
    with pytest.raises(ValueError, match="metric must be one of euclidean, sqeuclidean, cosine, got 'ip'"):
        Neighbours.from_arrays(*arrays(x), metric="ip")
    with pytest.raises(ValueError, match="but row 0 and its neighbour"):
        Neighbours.from_arrays(*arrays(x), metric="cosine", embeddings=x)
    with pytest.raises(
        ValueError, match=r"embeddings must be \(150, d\), one per row of the table, got \(100, 8\)"
    ):
        Neighbours.from_arrays(*arrays(x), metric="euclidean", embeddings=x[:100])
    with pytest.raises(ValueError, match="must have a query per sample, 100, got 150"):
        DAO(k=K).score(x[:100], Neighbours.from_arrays(*arrays(x), metric="euclidean"))


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (np.zeros((4, 4)), r"sparse matrix \(n, n\) of scipy, got shape \(4, 4\)"),
        ([[1]], "of scipy, got list"),
        (csr_matrix((4, 5)), r"got shape \(4, 5\)"),
        (csr_matrix((0, 0)), "but it has no rows"),
        (csr_matrix((4, 4)), "but row 0 has 0"),
        (csr_matrix(np.tri(4)), "but row 0 has 1, row 1 has 2"),
        (kneighbors_graph(np.eye(9) * range(9), 3), r'nothing but ones; make it with kneighbors_graph\(mode="dist'),
    ],
)
def test_what_is_no_graph_is_refused(graph, said):
    with pytest.raises(ValueError, match=said):
        Neighbours.from_graph(graph, metric="euclidean")
