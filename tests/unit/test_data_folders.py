"""Class folders as pairs: layouts, captions, synonyms, storage, damage, keys, refusals."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from experiments.data.class_folders import ClassFolders
from experiments.data.damage import TooMuchDamage
from experiments.data.file_pairs import in_array
from experiments.data.folder_pairs import Folders
from experiments.data.pairs import ArrayPairs, open_pairs, open_test
from experiments.data.test_set import prompt_templates

COLOURS = {"dark_red": (120, 0, 0), "green": (0, 200, 0), "n07753592": (200, 200, 0)}
ENDINGS = ("png", "jpg", "webp", "JPEG")


def _pictures(path, n=8, inside=""):
    for name, colour in COLOURS.items():
        (path / name / inside).mkdir(parents=True)
        for i in range(n):
            file = path / name / inside / f"{i}.{ENDINGS[i % 4]}"
            Image.new("RGB", (24 + i, 16), colour).save(file, quality=95)
        (path / name / "notes.txt").write_text("no picture")
    return str(path)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return _pictures(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module", params=["array", "files"])
def built(request, path, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    Folders(path, size=16, storage=request.param, seed=3).build(place)
    return request.param, open_pairs(place), place


def test_pictures_and_captions_are_those_of_the_class(built):
    storage, pairs, place = built
    assert isinstance(pairs, ArrayPairs) == (storage == "array")
    assert (len(pairs), pairs.size) == (24, 16)
    np.testing.assert_array_equal(pairs.ids, np.arange(24))
    expected = np.array(list(COLOURS.values()))[np.repeat([0, 1, 2], 8)]
    assert np.abs(pairs.images(np.arange(24))[:, 8, 8].astype(int) - expected).max() <= 6
    sayings = {
        template.format(name) for name in ("dark red", "green", "n07753592") for template in prompt_templates()
    }
    assert set(pairs.captions) <= sayings
    assert [("dark red" in caption) for caption in pairs.captions] == [True] * 8 + [False] * 16
    assert open_test(place).classes == ("dark red", "green", "n07753592")
    assert len(open_test(place)) == 0
    assert not (place / "decoded.npy").exists()
    assert not (place / "parts").exists()


def test_array_and_files_hold_the_same(path, tmp_path):
    for storage, workers in (("array", 2), ("files", 1)):
        Folders(path, size=16, storage=storage, holdout=0.3).build(tmp_path / storage, workers)
    array, files = (open_pairs(tmp_path / storage) for storage in ("array", "files"))
    rows = np.array([5, 0, 5, 11])
    np.testing.assert_array_equal(array.images(rows), files.images(rows))
    np.testing.assert_array_equal(array.ids, files.ids)
    assert list(array.captions) == list(files.captions)
    tests = [open_test(tmp_path / storage) for storage in ("array", "files")]
    assert len(tests[0]) + len(array) == 24
    assert 2 <= len(tests[0]) <= 14
    np.testing.assert_array_equal(tests[0].canvases, tests[1].canvases)
    np.testing.assert_array_equal(tests[0].labels, tests[1].labels)


def test_storage_goes_by_size():
    assert in_array("auto", 1_000_000, 32)
    assert not in_array("auto", 2_000_000, 32)
    assert in_array("array", 2_000_000, 32)
    assert not in_array("files", 1, 32)


def test_tiny_imagenets_layout(path, tmp_path):
    nested = _pictures(tmp_path / "nested", inside="images")
    Folders(nested, size=16, captions="names").build(tmp_path / "built")
    assert open_pairs(tmp_path / "built").captions == ["dark red"] * 8 + ["green"] * 8 + ["n07753592"] * 8
    assert len(ClassFolders(nested, size=16).files()[0]) == 24


def test_class_names_by_file_and_by_wordnet_id(path, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("dark_red\tbrick\ngreen\tlime\nn07753592\tbanana\n")
    assert Folders(path, size=16, classes=str(names)).names() == ("brick", "lime", "banana")
    (tmp_path / "in").mkdir()
    for wnid in ("n07753592", "n09472597"):
        shutil.copytree(f"{path}/n07753592", tmp_path / "in" / wnid)
    assert Folders(str(tmp_path / "in"), size=16, classes="imagenet").names() == ("banana", "volcano")


def test_a_caption_hangs_on_seed_and_file_alone(path, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / "dark_red" / "0.png").unlink()
    (copy / "apple").mkdir()
    shutil.copy(f"{path}/green/0.png", copy / "apple/new.png")

    def drawn(root, **options):
        folders = Folders(str(root), size=16, **options)
        paths, labels = folders.files()
        captions = folders.draw_captions(paths, labels)
        return dict(zip(paths, captions, strict=True))

    before, after = drawn(path), drawn(copy)
    shared = before.keys() & after.keys()
    assert len(shared) == 23
    assert all(before[name] == after[name] for name in shared)
    assert drawn(path) == before
    assert sum(drawn(path, seed=1)[name] != before[name] for name in before) > 15
    assert len(set(before.values())) > 15


def test_templates_and_synonyms_from_files(path, tmp_path):
    (tmp_path / "templates.txt").write_text("# mine\na picture of {}\n{}, seen from afar\n")
    (tmp_path / "synonyms.txt").write_text("green\tlime\temerald\nn07753592\tplantain\n")
    options = {"captions": str(tmp_path / "templates.txt"), "synonyms": str(tmp_path / "synonyms.txt")}
    folders = Folders(path, size=16, synonym_share=0.5, **options)
    many = [f"{path}/{name}/{i}.png" for name in COLOURS for i in range(400)]
    captions = folders.draw_captions(many, np.repeat(np.arange(3), 400))
    counts = {caption: captions.count(caption) for caption in set(captions)}
    assert set(counts) == {
        saying.format(name)
        for name in ("dark red", "green", "lime", "emerald", "n07753592", "plantain")
        for saying in ("a picture of {}", "{}, seen from afar")
    }
    assert abs(counts["a picture of dark red"] - 200) < 50
    assert abs(sum(n for caption, n in counts.items() if "green" in caption) - 200) < 50
    assert abs(sum(n for caption, n in counts.items() if "lime" in caption) - 100) < 40
    never = Folders(path, size=16, synonym_share=0.0, **options).draw_captions(many, np.repeat(np.arange(3), 400))
    assert not any("lime" in caption or "plantain" in caption for caption in never)


def test_a_byte_order_mark_is_no_part_of_a_template_or_synonym(path, tmp_path):
    for name, text in (("templates", "a picture of {}\n"), ("synonyms", "green\tlime\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    folders = Folders(path, size=16, captions=str(tmp_path / "templates"), synonyms=str(tmp_path / "synonyms"))
    assert folders.templates() == ("a picture of {}",)
    assert folders.class_synonyms() == ((), ("lime",), ())
    (tmp_path / "templates").write_bytes(b"a {} \xe9\n")
    with pytest.raises(ValueError, match="templates is not in UTF-8"):
        Folders(path, size=16, captions=str(tmp_path / "templates"))


def test_damage_is_left_out_and_moves_no_id(path, tmp_path):
    copy = tmp_path / "in"
    shutil.copytree(path, copy)
    (copy / "green/2.webp").write_bytes(b"no picture")
    Image.new("RGB", (4, 4)).save(copy / "n07753592/0.png")
    Image.new("L", (20, 20)).save(copy / "dark_red/4.png")
    for storage in ("array", "files"):
        place = tmp_path / storage
        with pytest.raises(TooMuchDamage, match=r"2 of 24 .*max_damaged=0\.05"):
            Folders(str(copy), size=16, storage=storage).build(place)
        sound = tmp_path / "sound"
        copy.rename(sound)
        shutil.copytree(sound, copy, copy_function=lambda _, to: open(to, "wb").close())  # tried once, not again
        Folders(str(copy), size=16, storage=storage, max_damaged=0.1).build(place)
        summary = json.loads((place / "damage.json").read_text())
        assert summary["damage"] == {"not an image": 1, "too small": 1}
        assert summary["notes"] == {"grey": 1}
        assert set(range(24)) - set(open_pairs(place).ids.tolist()) == {10, 16}
        shutil.rmtree(copy)
        sound.rename(copy)


def test_unchecked_files_are_named_when_they_fail(path, tmp_path):
    copy = tmp_path / "in"
    shutil.copytree(path, copy)
    (copy / "green/2.webp").write_bytes(b"no picture")
    Folders(str(copy), size=16, storage="files", check=False).build(tmp_path / "out")
    pairs = open_pairs(tmp_path / "out")
    assert len(pairs) == 24
    with pytest.raises(RuntimeError, match=r"green/2.webp cannot be decoded: not an image.*data.check=true"):
        pairs.images(np.array([10]))
    (copy / "green/3.JPEG").unlink()
    with pytest.raises(RuntimeError, match=r"green/3.JPEG could be read when the data were listed, and cannot"):
        pairs.images(np.array([11]))


def test_the_fingerprint_follows_all_that_the_configuration_points_at(path, tmp_path):
    copy = tmp_path / "in"
    shutil.copytree(path, copy, copy_function=shutil.copy2)
    templates, synonyms = tmp_path / "t.txt", tmp_path / "s.txt"
    templates.write_text("a {}\n")
    synonyms.write_text("green\tlime\n")

    def fingerprint():
        return Folders(str(copy), size=16, captions=str(templates), synonyms=str(synonyms)).fingerprint()

    seen = [fingerprint()]
    assert fingerprint() == seen[0]
    templates.write_text("the {}\n")
    seen.append(fingerprint())
    synonyms.write_text("green\tmint\n")
    seen.append(fingerprint())
    status = os.stat(copy / "green/0.png")
    os.utime(copy / "green/0.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.append(fingerprint())
    (copy / "green/0.png").rename(copy / "green/00.png")
    seen.append(fingerprint())
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "nowhere"}, "data.path must be a folder of class folders, but there is no folder 'nowhere'"),
        ({"captions": "openia"}, "data.captions must be openai, names or a file of templates.* 'openia'"),
        ({"synonyms": "none.txt"}, "data.synonyms must be a file, but there is no file 'none.txt'"),
        ({"classes": "none.txt"}, "data.classes must be 'imagenet' or a file of class names"),
        ({"classes": "imagenet"}, "2 of 3 folders of data.path=.* are not among ImageNet's WordNet ids"),
        ({"storage": "disk"}, "data.storage must be one of auto, array, files, got 'disk'"),
        ({"holdout": 1.0}, r"data.holdout must lie in \[0, 1\), got 1.0"),
        ({"synonym_share": 2.0}, r"data.synonym_share must lie in \[0, 1\], got 2.0"),
        ({"size": 0}, "data.size must be at least 1 pixel, got 0"),
        ({"max_damaged": 2}, r"data.max_damaged must lie in \[0, 1\], got 2"),
        ({"per_class": 0}, "data.per_class must be at least 1, got 0"),
        ({"min_side": 0}, "min_side must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_on_construction(path, options, message):
    with pytest.raises(ValueError, match=message):
        Folders(**{"path": path, "size": 16, **options})


@pytest.mark.parametrize(
    ("option", "content", "message"),
    [
        ("captions", "a {}\na thing\n", r"each line must hold one '\{\}' .*got 'a thing'"),
        ("captions", "# nothing\n", "got 'no line'"),
        ("captions", "{} and {}\n", r"got '\{\} and \{\}'"),
        ("synonyms", "blue\tsky\n", r"of a class of data.path, got 'blue\\tsky'"),
        ("synonyms", "green\n", "got 'green'"),
        ("synonyms", "green\tdark red\n", "'dark red' is the name of a class"),
    ],
)
def test_bad_files_are_refused_on_construction(path, tmp_path, option, content, message):
    (tmp_path / "file.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        Folders(path, size=16, **{option: str(tmp_path / "file.txt")})
