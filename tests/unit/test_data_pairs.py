"""The array-backed pairs and the test set: round trip, copies, refusals."""

import numpy as np
import pytest

from experiments.data.pairs import (
    ArrayPairs,
    TestSet,
    create_images,
    open_pairs,
    open_test,
    save_captions,
    write_images,
)


def _images(n, size=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_round_trip_through_a_folder_in_pieces(tmp_path):
    images = _images(10)
    create_images(tmp_path / "images.npy", 10, 4)
    write_images(tmp_path / "images.npy", 6, images[6:])
    write_images(tmp_path / "images.npy", 0, images[:6])
    save_captions(tmp_path / "captions.parquet", np.arange(10) * 3, [f"caption {i}" for i in range(10)])
    pairs = open_pairs(tmp_path)
    assert (len(pairs), pairs.size) == (10, 4)
    np.testing.assert_array_equal(pairs.ids, np.arange(10) * 3)
    assert pairs.ids.dtype == np.int64
    assert pairs.captions[9] == "caption 9"
    np.testing.assert_array_equal(pairs.images(np.array([9, 0, 9])), images[[9, 0, 9]])


def test_images_are_copies():
    pairs = ArrayPairs(np.arange(3), ["a", "b", "c"], _images(3))
    before = pairs.canvases.copy()
    pairs.images(np.array([1]))[:] = 0
    np.testing.assert_array_equal(pairs.canvases, before)


def test_writing_past_the_end_is_refused(tmp_path):
    create_images(tmp_path / "images.npy", 5, 4)
    with pytest.raises(ValueError, match="does not fit into"):
        write_images(tmp_path / "images.npy", 3, _images(3))
    with pytest.raises(ValueError, match="does not fit into"):
        write_images(tmp_path / "images.npy", 0, _images(1, size=5))


@pytest.mark.parametrize(
    ("ids", "captions", "images", "message"),
    [
        ([0, 1], ["a"], _images(2), "differ in number: 2, 1 and 2"),
        ([0, 0], ["a", "b"], _images(2), "unique"),
        ([0, 1], ["a", "b"], _images(2).astype(float), "uint8"),
        ([0, 1], ["a", "b"], _images(2)[:, :3], r"\(n, size, size, 3\)"),
    ],
)
def test_bad_pairs_are_refused(ids, captions, images, message):
    with pytest.raises(ValueError, match=message):
        ArrayPairs(np.array(ids), captions, images)


def test_test_set_round_trip_and_refusals(tmp_path):
    test = TestSet(_images(4), np.array([0, 1, 1, 0]), ("banana", "pine tree"), ("a photo of a {}.",))
    test.save(tmp_path)
    again = open_test(tmp_path)
    np.testing.assert_array_equal(again.images(np.arange(4)), test.canvases)
    np.testing.assert_array_equal(again.labels, test.labels)
    assert (again.classes, again.templates, len(again), again.size) == (test.classes, test.templates, 4, 4)
    with pytest.raises(ValueError, match="no class 'apple' in the test set; classes: banana, pine tree"):
        test.label("apple")
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.0"):
        TestSet(_images(2), np.array([0, 1]), ("banana",), ("{}",))
    with pytest.raises(ValueError, match="4 test images but 3 labels"):
        TestSet(_images(4), np.array([0, 0, 0]), ("banana",), ("{}",))
    with pytest.raises(ValueError, match=r"class name, got .*a photo"):
        TestSet(_images(1), np.array([0]), ("banana",), ("a photo",))
