"""Pictures without captions: which files, ids, damage, storage, refusals."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from experiments.data.file_pairs import FilePairs
from experiments.data.pairs import open_pairs, open_test
from experiments.data.pictures import Pictures
from experiments.data.provenance import origins

COLOURS = [(220, 20, 30), (20, 200, 40), (30, 40, 220)]


@pytest.fixture
def folder(tmp_path):
    for number, place in enumerate((".", "a/b", "c")):
        (tmp_path / "in" / place).mkdir(parents=True, exist_ok=True)
        for name in ("1.png", "2.JPG", ".3.png", "4.txt"):
            ending = "PNG" if name.endswith("png") else "JPEG"
            Image.new("RGB", (24, 16), COLOURS[number]).save(tmp_path / "in" / place / name, ending)
    (tmp_path / "in/.git").mkdir()
    Image.new("RGB", (24, 16)).save(tmp_path / "in/.git/x.png")
    return tmp_path / "in"


@pytest.mark.parametrize("storage", ["array", "files"])
def test_every_picture_is_there_once_with_an_empty_caption(folder, tmp_path, storage):
    data = Pictures(str(folder), 16, storage=storage)
    data.build(tmp_path / "built")
    pairs = open_pairs(tmp_path / "built")
    assert isinstance(pairs, FilePairs) == (storage == "files")
    names = ["1.png", "2.JPG", "a/b/1.png", "a/b/2.JPG", "c/1.png", "c/2.JPG"]
    assert origins(data, np.asarray(pairs.ids))["key"] == names
    expected = np.array(COLOURS)[[0, 0, 1, 1, 2, 2]]
    assert np.abs(pairs.images(np.arange(6))[:, 8, 8].astype(int) - expected).max() <= 3
    assert list(pairs.captions) == [""] * 6
    assert len(open_test(tmp_path / "built")) == 0


def test_damage_is_counted_and_links_stay_in_the_folder(folder, tmp_path):
    (folder / "a/b/1.png").write_bytes(b"")
    Image.new("RGB", (24, 16)).save(tmp_path / "outside.png")
    (folder / "c/9.png").symlink_to(tmp_path / "outside.png")
    (folder / "linked").symlink_to(tmp_path)
    data = Pictures(str(folder), 16, max_damaged=0.5)
    data.build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"] == {
        "empty file": 1,
        "link out of the folder": 1,
    }
    assert open_pairs(tmp_path / "built").ids.tolist() == [0, 1, 3, 4, 5]


def test_the_fingerprint_follows_names_and_times(folder):
    def fingerprint():
        return Pictures(str(folder), 16).fingerprint()

    seen = [fingerprint()]
    status = os.stat(folder / "1.png")
    os.utime(folder / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.append(fingerprint())
    (folder / "1.png").rename(folder / "3.png")
    seen.append(fingerprint())
    assert len(set(seen)) == 3


def test_a_name_that_is_no_text_is_damage(folder, tmp_path):
    os.rename(folder / "1.png", os.path.join(os.fsencode(folder), b"\xff.png"))
    data = Pictures(str(folder), 16, max_damaged=0.5)
    data.build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"] == {"broken file name": 1}
    assert "\\udcff.png" in origins(data, np.arange(6))["key"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere"}, "data.path must be a folder of pictures, but there is no folder 'nowhere'"),
        ({"size": 0}, "data.size must be at least 1 pixel, got 0"),
        ({"storage": "disk"}, "data.storage must be one of auto, array, files, got 'disk'"),
        ({"max_damaged": 2}, r"data.max_damaged must lie in \[0, 1\], got 2"),
    ],
)
def test_bad_options_are_refused_on_construction(folder, options, message):
    with pytest.raises(ValueError, match=message):
        Pictures(**{"path": str(folder), "size": 16, **options})


def test_a_folder_without_pictures_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("no picture")
    with pytest.raises(ValueError, match="holds no pictures"):
        Pictures(str(tmp_path), 16)
