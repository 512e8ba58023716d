"""The picture of docs/search.md shows what its equations say."""

import numpy as np

from analysis import search_picture, style


def test_the_planes_of_the_picture_keep_equations_9_and_10():
    to_b, to_a = search_picture.planes()
    apart = np.linalg.norm(np.array(search_picture.ROWS_A)[:, None] - np.array(search_picture.ROWS_B), axis=2)
    assert (apart >= to_b[:, None] + to_a[None] - 1e-6).all()
    assert to_b[0] + to_a.min() > search_picture.KTH


def test_the_candidates_of_the_picture_keep_equations_4_and_5():
    root_a, distances, kth_distance, bound = search_picture.candidates(k=4)
    assert (np.diff(root_a) >= 0).all()
    assert sorted(distances)[3] <= kth_distance < bound < root_a[-1]
    assert (root_a[distances <= kth_distance] <= bound).all()
    assert (root_a <= bound).sum() > 4  # some candidate beyond the k-th is measured


def test_the_picture_is_drawn(tmp_path):
    (path,) = style.save(search_picture.draw(), tmp_path, "search")
    assert path.stat().st_size > 10_000
