"""Image files from a table: columns, damage, held-out share, classes, paths, going on after a stop."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from experiments.data.damage import TooMuchDamage
from experiments.data.pairs import open_pairs, open_test
from experiments.data.tables import Files
from experiments.data.test_set import caption_labels, frequent_words, read_classes, seeded_shares

COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 220)}


def _folder(path, n=60, header=("filepath", "title"), sep=",", name="data.csv", damage=True):
    """n solid-colour pictures whose captions tell the colour; rows 7 and 8 are damaged."""
    (path / "pictures").mkdir(parents=True)
    lines = [sep.join(header)]
    for row in range(n):
        colour = list(COLOURS)[row % 3]
        Image.new("RGB", (24, 16), COLOURS[colour]).save(path / f"pictures/{row}.png")
        caption = f"a {colour} picture" if row % 4 else "some picture"
        lines.append(sep.join([f"pictures/{row}.png", "" if damage and row == 8 else caption]))
    if damage:
        (path / "pictures/7.png").write_bytes(b"")
    (path / name).write_text("\n".join(lines) + "\n")
    return str(path / name)


def _files(table, **options):
    return Files(table, **{"size": 16, "classes": list(COLOURS), "holdout": 0.3, **options})


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    files = _files(_folder(source))
    files.build(folder)
    return files, source, folder


def test_every_sound_row_is_there_once_with_its_image(built):
    _, _, folder = built
    pairs, test = open_pairs(folder), open_test(folder)
    assert len(pairs) + len(test) == 58
    assert not {7, 8} & set(pairs.ids)
    expected = np.array([list(COLOURS.values())[row % 3] for row in pairs.ids])
    np.testing.assert_array_equal(pairs.images(np.arange(len(pairs)))[:, 3, 3], expected)
    np.testing.assert_array_equal(
        test.images(np.arange(len(test)))[:, 3, 3], np.array(list(COLOURS.values()))[test.labels]
    )
    assert 5 <= len(test) <= 22
    named = [i for i, row in enumerate(pairs.ids) if row % 4]
    assert all(list(COLOURS)[pairs.ids[i] % 3] in pairs.captions[i] for i in named)
    assert len(test.templates) == 80


def test_damage_is_listed(built):
    summary = json.loads((built[2] / "damage.json").read_text())
    assert summary["damage"] == {"empty file": 1, "missing caption": 1}
    assert summary["left_out"] == 2
    assert "7,pictures/7.png,empty file,,1" in (built[2] / "damage.csv").read_text().splitlines()
    assert not (built[2] / "parts").exists()


def test_same_result_with_two_workers_and_what_is_held_out_does_not_move(built, tmp_path):
    files, source, folder = built
    files.build(tmp_path, workers=2)
    for part in ("images.npy", "test/images.npy", "captions.parquet", "damage.csv"):
        assert (tmp_path / part).read_bytes() == (folder / part).read_bytes(), part
    broken = source / "pictures/11.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:20])
    try:
        again = tmp_path / "again"
        files.build(again)
    finally:
        broken.write_bytes(content)
    assert set(open_pairs(again).ids) == set(open_pairs(folder).ids) - {11}


@pytest.mark.parametrize(
    ("name", "sep", "options"),
    [("data.tsv", "\t", {}), ("data.txt", "\t", {}), ("data.csv", ";", {"sep": ";"})],
)
def test_separators(built, tmp_path, name, sep, options):
    table = _folder(tmp_path, sep=sep, name=name)
    files = _files(table, **options)
    assert files.read_table() == built[0].read_table()


def test_parquet_and_other_columns(tmp_path, built):
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths, captions = built[0].read_table()
    pq.write_table(pa.table({"img": paths, "n": list(range(60)), "text": captions}), tmp_path / "data.parquet")
    files = _files(str(tmp_path / "data.parquet"), img_key="img", caption_key="text", root=str(built[1]))
    assert files.read_table() == (paths, captions)
    files.build(tmp_path / "built")
    assert (tmp_path / "built/images.npy").read_bytes() == (built[2] / "images.npy").read_bytes()


def test_quotes_newlines_and_numbers_in_captions(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    (tmp_path / "data.csv").write_text('filepath,title\n0.png,"red,\n ""big""  house"\n0.png,2024\n0.png,"  "\n')
    _, captions = _files(str(tmp_path / "data.csv")).read_table()
    assert captions == ['red, "big" house', "2024", None]


def test_paths_may_not_leave_the_folder(tmp_path):
    table = _folder(tmp_path / "data", damage=False)
    Image.new("RGB", (16, 16)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "data/pictures/link.png")
    with open(table, "a") as stream:
        stream.write(f"../secret.png,one\npictures/link.png,two\n{tmp_path}/secret.png,three\n")
        stream.write(f"{tmp_path}/data/pictures/1.png,inside\npictures,a folder\nnone.png,four\n")
    _files(table, max_damaged=1).build(tmp_path / "built")
    summary = json.loads((tmp_path / "built/damage.json").read_text())
    assert summary["damage"] == {"outside the folder": 3, "missing file": 2}
    assert 63 in open_pairs(tmp_path / "built").ids


def test_too_much_damage_stops_with_the_report_and_keeps_the_rest(tmp_path):
    table = _folder(tmp_path / "data")
    files = _files(table, max_damaged=0.01)
    with pytest.raises(TooMuchDamage, match=r"2 of 60 .*max_damaged=0\.01 .*damage.csv.*data\.max_damaged=0\.035"):
        files.build(tmp_path / "built")
    assert len((tmp_path / "built/damage.csv").read_text().splitlines()) == 3
    for row in range(60):  # what was read before is not read again
        (tmp_path / f"data/pictures/{row}.png").unlink()
    _files(table, max_damaged=0.04).build(tmp_path / "built")
    assert len(open_pairs(tmp_path / "built")) + len(open_test(tmp_path / "built")) == 58


def test_a_changed_table_is_read_again(tmp_path):
    table = _folder(tmp_path / "data")
    with pytest.raises(TooMuchDamage):
        _files(table, max_damaged=0).build(tmp_path / "built")
    before = _files(table).fingerprint()
    with open(table, "a") as stream:
        stream.write("pictures/0.png,a red one\n")
    assert _files(table).fingerprint() != before
    _files(table).build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["samples"] == 61


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"img_key": "filepaht"},
            r"data.img_key='filepaht' is no column .*'filepath', 'title'; did you mean 'filepath'",
        ),
        ({"caption_key": "x"}, r"data.caption_key='x' is no column of .*its columns: 'filepath', 'title'$"),
        ({"classes": ["cat", "dog"]}, "no caption names exactly one of the 2 classes"),
        ({"classes": ["cat"]}, "at least 2 class names, got 1"),
    ],
)
def test_bad_options_found_before_reading_images(tmp_path, options, message):
    files = _files(_folder(tmp_path / "data"), **options)
    with pytest.raises(ValueError, match=message):
        files.build(tmp_path / "built")
    assert not (tmp_path / "built").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "none.csv"}, "no file 'none.csv'"),
        ({"root": "nowhere"}, "no folder 'nowhere'"),
        ({"classes": "none.txt"}, "no file 'none.txt'"),
        ({"holdout": 1.0}, r"data.holdout must lie in \[0, 1\), got 1.0"),
        ({"max_damaged": -0.1}, r"data.max_damaged must lie in \[0, 1\], got -0.1"),
    ],
)
def test_bad_options_are_refused_on_construction(tmp_path, options, message):
    table = _folder(tmp_path / "data", n=3)
    with pytest.raises(ValueError, match=message):
        Files(**{"table": table, "size": 16, **options})


def test_nothing_held_out(tmp_path):
    files = _files(_folder(tmp_path / "data"), holdout=0)
    files.build(tmp_path / "built")
    assert (len(open_pairs(tmp_path / "built")), len(open_test(tmp_path / "built"))) == (58, 0)


def test_captions_name_a_class_as_whole_words():
    classes = ("tree", "pine tree", "Cat")
    captions = ["Tree", "a pine  tree", "street", "cat and tree", "CAT, cat", "", "pine tree and tree", "trees"]
    np.testing.assert_array_equal(caption_labels(captions, classes), [0, 1, -1, -1, 2, -1, -1, -1])


def test_class_file_and_frequent_words(tmp_path):
    (tmp_path / "classes.txt").write_text("# mine\nred\n\nblue  # a colour\nred\n")
    assert read_classes(str(tmp_path / "classes.txt")) == ("red", "blue")
    captions = ["the cat"] * 3 + ["a dog photo"] * 2 + ["one bird", "x 12 of"] + ["other"] * 13
    assert frequent_words(captions, 2) == ("cat", "dog")


def test_seeded_shares_are_uniform_and_of_id_and_seed_alone():
    ids = np.arange(50_000) * 7
    shares = seeded_shares(ids, 3)
    counts = np.histogram(shares, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 2500).max() < 5 * 2500**0.5
    np.testing.assert_array_equal(seeded_shares(ids[::-5], 3), shares[::-5])
    assert abs(np.corrcoef(shares, seeded_shares(ids, 4))[0, 1]) < 0.02
    assert abs(np.corrcoef(shares[1:], shares[:-1])[0, 1]) < 0.02
