"""Brute force in float64, and points that are hard to search."""

import numpy as np

from detect.search import knn


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


def check(found: knn.Nearest, queries, base, k, own=None) -> None:
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
