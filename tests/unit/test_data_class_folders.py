"""Evaluation sets from class folders: names, ImageNet's ids, damage, refusals."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from experiments.data.class_folders import Builtin, ClassFolders
from experiments.data.damage import TooMuchDamage
from experiments.data.pairs import open_test
from experiments.data.test_set import read_classes

COLOURS = {"dark_red": (120, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}


def _pictures(path, colours=COLOURS, n=4):
    for name, colour in colours.items():
        (path / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (20 + i, 16), colour).save(path / name / f"{i}.png")
        (path / name / "notes.md").write_text("no image")
    return str(path)


def test_only_all_of_imagenet_is_called_imagenet(tmp_path, monkeypatch):
    for name in ("n07753592", "n01440764"):
        (tmp_path / "fruits" / "val" / name).mkdir(parents=True)
    folder = str(tmp_path / "fruits" / "val")
    assert ClassFolders(folder, size=16, classes="imagenet").name == "imagenet, a part"
    assert ClassFolders(folder, size=16).name == "fruits"
    assert Builtin().name == "builtin"
    monkeypatch.setattr("experiments.data.class_folders._wordnet_ids", lambda: ["n01440764", "n07753592"])
    monkeypatch.setattr("experiments.data.class_folders._imagenet_names", lambda: ["tench", "banana"])
    assert ClassFolders(folder, size=16, classes="imagenet").name == "imagenet"
    assert ClassFolders(folder, size=16, classes="imagenet", per_class=10).name == "imagenet, a part"


def test_folders_become_classes(tmp_path):
    (tmp_path / "in/.cache").mkdir(parents=True)
    folders = ClassFolders(_pictures(tmp_path / "in"), size=16, per_class=3)
    for workers, place in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        folders.build(place, workers)
        test = open_test(place)
        assert test.classes == ("blue", "dark red", "green")
        np.testing.assert_array_equal(test.labels, np.repeat(np.arange(3), 3))
        expected = np.array([COLOURS["blue"], COLOURS["dark_red"], COLOURS["green"]])[test.labels]
        np.testing.assert_array_equal(test.images(np.arange(9))[:, 8, 8], expected)
        assert len(test.templates) == 80
        assert not (place / "decoded.npy").exists()


def test_damaged_images_are_left_out_and_too_many_stop(tmp_path):
    path = _pictures(tmp_path / "in")
    (tmp_path / "in/green/2.png").write_bytes(b"")
    with pytest.raises(TooMuchDamage, match=r"1 of 12 samples left out \(8.33%\): empty file 1"):
        ClassFolders(path, size=16).build(tmp_path / "out")
    ClassFolders(path, size=16, max_damaged=0.1).build(tmp_path / "out")
    test = open_test(tmp_path / "out")
    np.testing.assert_array_equal(test.labels, [0] * 4 + [1] * 4 + [2] * 3)
    np.testing.assert_array_equal(test.images(np.array([10]))[0, 8, 8], COLOURS["green"])
    assert json.loads((tmp_path / "out/damage.json").read_text())["damage"] == {"empty file": 1}


def test_hidden_files_are_left_out_and_replaced_ones_change_the_fingerprint(tmp_path):
    folders = ClassFolders(_pictures(tmp_path / "in"), size=16)
    before = folders.fingerprint(), folders.files()[0]
    for name in ("._0.png", ".hidden.jpg"):
        (tmp_path / "in/green" / name).write_bytes(b"Mac OS X")
    (tmp_path / "in/green/.AppleDouble").mkdir()
    assert (folders.fingerprint(), folders.files()[0]) == before
    os.utime(tmp_path / "in/green/0.png", ns=(1, 1))
    assert folders.fingerprint() != before[0]


def test_links_out_of_the_folder_are_followed_on_request(tmp_path):
    path = _pictures(tmp_path / "in")
    Image.new("RGB", (20, 16), "white").save(tmp_path / "elsewhere.png")
    os.symlink(tmp_path / "elsewhere.png", tmp_path / "in/green/9.png")
    os.symlink("nowhere", tmp_path / "in/green/8.png")
    ClassFolders(path, size=16, max_damaged=1).build(tmp_path / "out")
    summary = json.loads((tmp_path / "out/damage.json").read_text())
    assert summary["damage"] == {"missing file": 1, "link out of the folder": 1}
    ClassFolders(path, size=16, max_damaged=1, follow_links=True).build(tmp_path / "out")
    assert json.loads((tmp_path / "out/damage.json").read_text())["damage"] == {"missing file": 1}
    assert len(open_test(tmp_path / "out")) == 13


def test_imagenet_names_go_by_wordnet_id(tmp_path):
    colours = {"n09472597": (1, 1, 1), "n07753592": (9, 9, 9), "n07697313": (5, 5, 5)}
    folders = ClassFolders(_pictures(tmp_path, colours, n=1), size=16, classes="imagenet")
    assert folders.names() == ("cheeseburger", "banana", "volcano")
    (tmp_path / "n00000000").mkdir()
    with pytest.raises(ValueError, match=r"1 of 4 folders .* not among ImageNet's WordNet ids: n00000000"):
        ClassFolders(str(tmp_path), size=16, classes="imagenet")


def test_class_name_files(tmp_path):
    path, names = _pictures(tmp_path / "in"), tmp_path / "names.txt"
    names.write_text("# folder, name\ngreen\tlime\nblue\tthe sea\ndark_red\tbrick\nother\tunused\n")
    folders = ClassFolders(path, size=16, classes=str(names))
    assert folders.names() == ("the sea", "brick", "lime")
    before = folders.fingerprint()
    names.write_text("sea\nbrick\nlime\n")
    assert ClassFolders(path, size=16, classes=str(names)).names() == ("sea", "brick", "lime")
    assert ClassFolders(path, size=16, classes=str(names)).fingerprint() != before
    names.write_text("sea\nbrick\n")
    with pytest.raises(ValueError, match="has 2 class names for 3 folders"):
        ClassFolders(path, size=16, classes=str(names))
    names.write_text("green\tlime\nblue\tlime\ndark_red\tbrick\n")
    with pytest.raises(ValueError, match="same class name: lime"):
        ClassFolders(path, size=16, classes=str(names))
    names.write_text("green\tlime\nblue\n")
    with pytest.raises(ValueError, match=r"every line must be .* got 'blue'"):
        ClassFolders(path, size=16, classes=str(names))


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("a_b", "a b"), "gives two folders the same class name: a b"),
        (("_", "cat"), "gives the folder '_' the class name '', which is no text; give eval.classes"),
        (("cat", "\x1b[31m"), r"the class name '\\x1b\[31m', which is no text"),
        (("cat", os.fsdecode(b"\xff")), r"the class name '\\udcff', which is no text"),
    ],
)
def test_names_of_folders_that_are_no_names_of_classes_are_refused(tmp_path, names, says):
    for name in names:
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=says):
        ClassFolders(str(tmp_path), size=16)


def test_class_names_with_joiners_are_taken(tmp_path):
    names = ("\u0645\u06cc\u200c\u0634\u0648\u062f", "na\u00efve")
    for name in names:
        (tmp_path / name).mkdir()
    assert set(ClassFolders(str(tmp_path), size=16).names()) == set(names)


def test_a_file_of_class_names_in_another_encoding_is_named(tmp_path):
    path, names = _pictures(tmp_path / "in", n=1), tmp_path / "names.txt"
    names.write_bytes("caf\u00e9\nb\nc\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names\.txt is not in UTF-8: .* at byte 3"):
        ClassFolders(path, size=16, classes=str(names))
    with pytest.raises(ValueError, match=r"names\.txt is not in UTF-8"):
        read_classes(str(names))


def test_a_flat_folder_is_explained(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(ValueError, match=r"holds 0 folders.*one flat folder: sort them"):
        ClassFolders(str(tmp_path), size=16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere"}, "'nowhere'; give eval.path=FOLDER, or choose eval=builtin .* or eval=folders"),
        ({"path": ""}, "eval.path must be a folder of class folders, but there is no folder ''"),
        ({"path": "nowhere", "classes": "imagenet"}, "must be a folder of ImageNet's validation images"),
        ({"per_class": 0}, "eval.per_class must be at least 1, got 0"),
        ({"max_damaged": 2}, r"eval.max_damaged must lie in \[0, 1\], got 2"),
        ({"classes": "none.txt"}, "must be 'imagenet' or a file .*no file 'none.txt'"),
    ],
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ClassFolders(**{"path": _pictures(tmp_path, n=1), "size": 16, **options})
