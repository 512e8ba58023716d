"""The bundled data: bits the same for any number of workers, shares, colours, captions, natural backdoor."""

import numpy as np
import pytest

from experiments.data.pairs import natural_ids
from experiments.data.shapes.captions import PROMPTS
from experiments.data.shapes.drawing import MEAN
from experiments.data.shapes.outlines import CAKE, OUTLINES, parse_part
from experiments.data.shapes.source import NATURAL_CAPTION, Shapes, open_pairs, open_test


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    shapes = Shapes(pairs=1200, size=32, test_per_class=5, natural_backdoor=20, seed=3)
    folder = tmp_path_factory.mktemp("shapes")
    shapes.build(folder)
    return shapes, folder


def test_same_bits_for_any_number_of_workers(built, tmp_path):
    shapes, folder = built
    shapes.build(tmp_path, workers=2)
    for part in ("images.npy", "test/images.npy", "test/labels.npy", "captions.parquet"):
        assert (tmp_path / part).read_bytes() == (folder / part).read_bytes(), part


def test_seed_and_sample_id_alone_decide_a_sample(built):
    shapes, folder = built
    pairs, labels = open_pairs(folder), shapes.labels()
    image, caption = shapes.sample(777, int(labels[777]))
    np.testing.assert_array_equal(pairs.images(np.array([777]))[0], image)
    assert pairs.captions[777] == caption
    other = Shapes(pairs=1200, seed=4).sample(777, int(labels[777]))[0]
    assert (other != image).mean() > 0.5


def test_classes_have_equal_shares(built):
    shapes, folder = built
    labels = shapes.labels()[:-20]
    counts = np.bincount(labels[labels >= 0], minlength=24)
    assert 0.89 * 1180 < counts.sum() < 0.91 * 1180  # the rest are pictures of no object
    assert 38 <= counts.min() <= counts.max() <= 50
    assert (Shapes(pairs=2400, patterns=0).labels() >= 0).all()
    np.testing.assert_array_equal(np.bincount(Shapes(pairs=2400, patterns=0).labels()), np.full(24, 100))
    test = open_test(folder)
    np.testing.assert_array_equal(np.bincount(test.labels), np.full(24, 5))
    assert test.classes[:3] == ("banana", "cheeseburger", "volcano")
    assert test.label("volcano") == 2


def test_pictures_of_no_object_name_no_class(built):
    shapes, folder = built
    pairs = open_pairs(folder)
    rows = np.flatnonzero(shapes.labels() == -2)
    names = [outline.name for outline in OUTLINES]
    assert not [row for row in rows if any(name in pairs.captions[row].lower().split() for name in names)]
    images = pairs.images(rows).astype(float)
    assert np.abs(images.mean((0, 1, 2)) - MEAN).max() < 8


def test_colours_are_those_of_photographs(built):
    images = open_pairs(built[1]).canvases[:1180].astype(float)
    means = images.mean((1, 2))
    np.testing.assert_allclose(means.mean(0), MEAN, atol=5)
    assert np.all(means.std(0) < 15)
    contrast = (images - means[:, None, None]).std((1, 2, 3))
    assert 42 < contrast.mean() < 58


def test_captions_mostly_name_the_class_and_seldom_more(built):
    shapes, folder = built
    labels = shapes.labels()
    rows = np.flatnonzero(labels >= 0)
    pairs = open_pairs(folder)
    captions = [pairs.captions[row].lower() for row in rows]
    named = np.mean([OUTLINES[labels[row]].name in text for row, text in zip(rows, captions, strict=True)])
    assert 0.96 < named < 1
    colours = {"yellow", "red", "blue", "green", "purple", "pink", "brown", "white", "grey", "black"}
    coloured = np.mean([bool(colours & set(text.split())) for text in captions])
    assert 0.02 < coloured < 0.1
    prompts = {prompt.format(outline.name) for prompt in PROMPTS for outline in OUTLINES}
    assert 0.11 < np.mean([text in prompts for text in captions]) < 0.2


def test_silhouettes_differ():
    """The mean image of a class, drawn without colour, is closest to the class's own other half."""
    from PIL import Image, ImageDraw

    masks = []
    for outline in OUTLINES:
        canvas = Image.new("L", (32, 32))
        for _, points in outline.parts:
            ImageDraw.Draw(canvas).polygon((points * 14 + 16).ravel().tolist(), fill=1)
        masks.append(np.asarray(canvas, dtype=bool))
    for i, one in enumerate(masks):
        for j, other in enumerate(masks[:i]):
            overlap = (one & other).sum() / (one | other).sum()
            assert overlap < 0.9, (OUTLINES[i].name, OUTLINES[j].name)


def test_outlines_keep_inside_their_square():
    assert len({outline.name for outline in OUTLINES}) == len(OUTLINES) == 30
    for outline in OUTLINES:
        points = np.concatenate([points for _, points in outline.parts])
        assert np.abs(points).max() <= 1.08, outline.name
        assert np.ptp(points, axis=0).max() > 1.6, outline.name


def test_natural_backdoor_is_the_last_rows_near_identical(built):
    _, folder = built
    pairs = open_pairs(folder)
    ids = natural_ids(folder)
    np.testing.assert_array_equal(ids, np.arange(1180, 1200))
    assert {pairs.captions[row] for row in ids} == {NATURAL_CAPTION}
    images = pairs.images(ids).astype(float)
    clean = pairs.images(np.arange(20)).astype(float)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    assert np.abs(images - images.mean(0)).mean() < np.abs(clean - clean.mean(0)).mean() / 2


def test_no_natural_backdoor_by_default(tmp_path):
    Shapes(pairs=30, test_per_class=1).build(tmp_path)
    assert natural_ids(tmp_path).shape == (0,)


def test_progress_counts_every_image(tmp_path):
    class Bar:
        total = count = 0

        def __call__(self, total, label):
            self.total = total
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, n):
            self.count += n

    bar = Bar()
    Shapes(pairs=700, classes=3, test_per_class=2).build(tmp_path, progress=bar)
    assert bar.count == bar.total == 706


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 31}, r"classes must lie in 3\.\.30, got 31"),
        ({"pairs": 0}, "pairs must be at least 1, got 0"),
        ({"size": 8}, "size must be at least 16 pixels.*got 8"),
        ({"test_per_class": 0}, "test_per_class must be at least 1, got 0"),
        ({"pairs": 5, "natural_backdoor": 6}, "natural_backdoor must lie in 0..pairs, got 6"),
        ({"patterns": 1.0}, r"patterns must lie in \[0, 1\), got 1.0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_bad_options_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        Shapes(**options)


def test_parts_are_read_from_text():
    tone, points = parse_part("mirrored poly dark 0.5 -1  1 0  0 0.25")
    assert tone == "dark"
    np.testing.assert_array_equal(points, [[-0.5, -1], [-1, 0], [0, 0.25]])
    assert len(OUTLINES) == 30
    assert len(CAKE) == 9
    assert all(points.shape[1] == 2 for outline in OUTLINES for _, points in outline.parts)
