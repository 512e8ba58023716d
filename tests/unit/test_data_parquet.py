"""Rows of Parquet files as pairs: columns, forms of images, ids, damage, storage, refusals."""

import io
import json
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.data import row_files, row_listing, row_readers
from experiments.data.damage import DecodeError, TooMuchDamage
from experiments.data.file_pairs import FilePairs
from experiments.data.pairs import ArrayPairs, open_pairs, open_test
from experiments.data.provenance import origins
from experiments.data.row_data import Parquet
from experiments.data.row_files import RowFiles
from experiments.data.unscored import find_unscored

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
COLOURS = {"red": (220, 20, 30), "green": (20, 200, 40), "blue": (30, 40, 220)}


def picture(row):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), list(COLOURS.values())[row % 3]).save(buffer, "PNG")
    return buffer.getvalue()


def caption(row):
    return f"a {list(COLOURS)[row % 3]} picture of number {row}"


def write(file, rows, image="image", text="caption", form="hf", **others):
    """Rows as a Parquet file with row groups of 7; form: hf, bytes, paths or hf_paths."""
    if form in ("paths", "hf_paths"):
        (file.parent / "images").mkdir(exist_ok=True, parents=True)
        for row in rows:
            (file.parent / f"images/{row}.png").write_bytes(picture(row))
    cells = {
        "hf": lambda row: {"bytes": picture(row), "path": f"{row}.png"},
        "hf_paths": lambda row: {"bytes": None, "path": f"images/{row}.png"},
        "bytes": picture,
        "paths": lambda row: f"images/{row}.png",
    }[form]
    kind = {"hf": HF, "hf_paths": HF, "bytes": pa.binary(), "paths": pa.string()}[form]
    columns = {image: pa.array([cells(row) for row in rows], kind), text: [caption(row) for row in rows], **others}
    file.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), file, row_group_size=7)
    return file


def parquet(path, **options):
    return Parquet(str(path), **{"size": 16, "holdout": 0.0, **options})


def colours(pairs):
    return pairs.images(np.arange(len(pairs)))[:, 8, 8].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("parquet")
    for number in range(3):
        write(place / f"train-{number:05d}-of-00003.parquet", range(20 * number, 20 * number + 20))
    return place


@pytest.mark.parametrize("storage", ["array", "files"])
def test_pictures_and_captions_are_those_of_the_rows(folder, tmp_path, storage):
    parquet(folder, storage=storage).build(tmp_path)
    pairs = open_pairs(tmp_path)
    assert isinstance(pairs, ArrayPairs if storage == "array" else FilePairs)
    assert list(pairs.captions) == [caption(row) for row in range(60)]
    assert colours(pairs) == [list(list(COLOURS.values())[row % 3]) for row in range(60)]
    assert len(open_test(tmp_path)) == 0
    assert not (tmp_path / "parts").exists()
    mixed = np.array([41, 3, 3, 59, 0])
    np.testing.assert_array_equal(pairs.images(mixed), pairs.images(np.arange(60))[mixed])
    again = pickle.loads(pickle.dumps(pairs))
    np.testing.assert_array_equal(again.images(mixed), pairs.images(mixed))


@pytest.mark.parametrize("form", ["bytes", "paths", "hf_paths"])
def test_every_form_of_an_image_gives_the_same_pairs(folder, tmp_path, form):
    file = write(tmp_path / "in/data.parquet", range(60), image="picture", text="text", form=form)
    for storage, workers in (("array", 2), ("files", 1)):
        parquet(file, storage=storage, img_key="picture").build(tmp_path / storage, workers)
        pairs = open_pairs(tmp_path / storage)
        assert colours(pairs) == [list(list(COLOURS.values())[row % 3]) for row in range(60)]
        assert list(pairs.captions) == [caption(row) for row in range(60)]


def test_ids_stay_when_files_are_added_left_out_or_moved(folder, tmp_path):
    def ids(path):
        data = parquet(path)
        data.build(tmp_path / str(len(os.listdir(tmp_path))))
        return data.members(tmp_path)[0]

    every = ids(folder)
    assert len(every) == len(np.unique(every)) == 60
    one = shutil.copytree(folder, tmp_path / "copy") / "train-00001-of-00003.parquet"
    assert set(ids(one)) < set(every)
    assert (ids(one) % 2**20).tolist() == list(range(20))


def test_a_file_of_more_rows_than_one_id_block_holds(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(row_listing, "POSITIONS", 16)
    data = parquet(folder)
    data.build(tmp_path)
    every = row_listing.RowIds([f"{folder}/a.parquet"], [40])
    assert len(np.unique(every.all)) == 40
    files, rows = every.locate(every.all[[39, 16, 0]])
    assert (files.tolist(), rows.tolist()) == ([0, 0, 0], [39, 16, 0])
    assert list(open_pairs(tmp_path).captions) == [caption(row) for row in range(60)]


def test_a_folder_a_glob_a_list_and_braces_name_the_same_files(folder, tmp_path):
    names = sorted(map(str, folder.glob("*.parquet")))
    for path in (folder, folder / "*.parquet", folder / "train-{00000..00002}-of-00003.parquet", "::".join(names)):
        assert parquet(path).files() == names
    assert Parquet(names, 16).files() == names
    nested = tmp_path / "repository"
    shutil.copytree(folder, nested / "data")
    shutil.copytree(folder, nested / ".cache")
    (nested / "data/._train.parquet").write_bytes(b"of a Mac")
    assert [os.path.relpath(file, nested) for file in parquet(nested).files()] == [
        f"data/train-{number:05d}-of-00003.parquet" for number in range(3)
    ]


def test_several_splits_are_named_in_a_warning(folder, tmp_path, caplog):
    both = shutil.copytree(folder, tmp_path / "in")
    (both / "train-00002-of-00003.parquet").rename(both / "test-00000-of-00001.parquet")
    parquet(both).build(tmp_path / "built")
    assert "files of several splits (train, test)" in caplog.text


def test_the_first_caption_of_a_list_and_of_bytes(tmp_path):
    texts = [["one", "two"], [], None, ["", "three"]]
    table = {"jpg": [picture(0)] * 4, "captions": pa.array(texts, pa.list_(pa.string()))}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    parquet(tmp_path, max_damaged=0.6).build(tmp_path / "built")
    assert open_pairs(tmp_path / "built").captions == ["one", "three"]
    damage = json.loads((tmp_path / "built/damage.json").read_text())
    assert damage["damage"] == {"missing caption": 2}
    assert damage["notes"] == {"list of captions, first taken": 2}
    table = {"jpg": [picture(0)] * 2, "txt": pa.array([b"caf\xe9", "café".encode()], pa.binary()).view(pa.string())}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    parquet(tmp_path).build(tmp_path / "bytes")
    assert open_pairs(tmp_path / "bytes").captions == ["caf\ufffd", "café"]


def test_damage_is_counted_named_and_moves_no_id(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/fine.png").write_bytes(picture(1))
    (tmp_path.parent / "outside.png").write_bytes(picture(1))
    (tmp_path / "images/link.png").symlink_to(tmp_path.parent / "outside.png")
    cells = [
        {"bytes": picture(0), "path": None},
        {"bytes": b"", "path": None},
        {"bytes": b"<html>", "path": "images/fine.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": None, "path": "images/none.png"},
        {"bytes": None, "path": "../outside.png"},
        {"bytes": None, "path": str(tmp_path.parent / "outside.png")},
        {"bytes": None, "path": "images/link.png"},
        {"bytes": None, "path": "https://example.org/a.png"},
        {"bytes": None, "path": "images/fine.png"},
        {"bytes": picture(0), "path": None},
    ]
    table = pa.table({"image": pa.array(cells, HF), "caption": [f"a {i}" if i < 11 else " " for i in range(12)]})
    pq.write_table(table, tmp_path / "data.parquet", row_group_size=5)
    expected = {
        "outside the folder": 2,
        "missing image": 2,
        "missing file": 2,
        "missing caption": 1,
        "empty file": 1,
        "not an image": 1,
        "link out of the folder": 1,
    }
    for storage in ("array", "files"):
        place = tmp_path / storage
        with pytest.raises(TooMuchDamage, match=r"10 of 12 samples left out"):
            parquet(tmp_path, storage=storage).build(place)
        data = parquet(tmp_path, storage=storage, max_damaged=0.9)
        data.build(place)
        assert json.loads((place / "damage.json").read_text())["damage"] == expected
        ids = data.members(place)[0]
        np.testing.assert_array_equal(open_pairs(place).ids, ids[[0, 10]])
        unscored = find_unscored(data, place, open_pairs(place).ids)
        assert unscored.counts() == expected
        assert "data.parquet:6,outside the folder" in (place / "damage.csv").read_text()
    parquet(tmp_path, max_damaged=0.9, follow_links=True).build(tmp_path / "links")
    assert len(open_pairs(tmp_path / "links")) == 3


def test_broken_files_and_row_groups_cost_their_own_rows_only(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "in")
    files = sorted(copy.iterdir())
    files[0].write_bytes(files[0].read_bytes()[:-100])
    content = bytearray(files[1].read_bytes())
    column = pq.ParquetFile(files[1]).metadata.row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + 40] = b"\xff" * 40
    files[1].write_bytes(content)
    data = parquet(copy, max_damaged=0.9, storage="files")
    data.build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"] == {
        "broken file": 20,
        "broken row group": 7,
    }
    assert len(open_pairs(tmp_path / "built")) == 33
    assert find_unscored(data, tmp_path / "built", open_pairs(tmp_path / "built").ids).lost == {"broken file": 20}
    files[2].unlink()
    pq.write_table(pa.table({"other": [1, 2]}), files[2])
    parquet(copy, max_damaged=0.99).build(tmp_path / "again")
    assert (
        "train-00002-of-00003.parquet,broken file,it has no column 'image'"
        in (tmp_path / "again/damage.csv").read_text()
    )


def test_a_row_group_that_memory_cannot_hold_is_refused_or_counted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(row_listing, "LARGEST_GROUP", 400)
    with pytest.raises(ValueError, match=r"row group \d holds [\d,]+ bytes, more than the 400 .*row_group"):
        parquet(folder).build(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(row_readers, "LARGEST_GROUP", 400)  # of a file that lies about its sizes
    with pytest.raises(ValueError, match="no usable sample"):
        parquet(folder, max_damaged=1.0).build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"] == {"row group too large": 60}


def test_a_value_that_many_rows_repeat_is_not_unfolded(tmp_path, monkeypatch):
    """A dictionary page is small in the file and, row by row, large in memory."""
    big = picture(0) + bytes(1 << 20)
    pq.write_table(pa.table({"image": [big] * 300, "caption": ["a"] * 300}), tmp_path / "a.parquet")
    monkeypatch.setattr(row_readers, "LARGEST_GROUP", 8 << 20)
    rows = RowFiles((str(tmp_path / "a.parquet"),), "image")
    before = pa.default_memory_pool().bytes_allocated()
    pool = pa.default_memory_pool()
    with pytest.raises(Exception, match="row group too large"):
        rows.read("a.parquet:0")
    assert pool.bytes_allocated() - before < 64 << 20


def test_row_groups_are_read_once_in_order_and_few_are_kept(folder, monkeypatch):
    loads = []
    original = row_readers.ParquetRows.images
    monkeypatch.setattr(row_readers.ParquetRows, "images", lambda self, *a: loads.append(a) or original(self, *a))
    rows = RowFiles(tuple(sorted(map(str, folder.glob("*.parquet")))), "image")
    keys = rows.keys(np.repeat([0, 1, 2], 20), np.tile(np.arange(20), 3))
    for key in keys:
        rows.read(key)
    assert len(loads) == 9
    monkeypatch.setattr(row_files, "KEPT", 1)
    rows.read(keys[0])
    assert len(rows._opened()._groups) == 1


def test_a_changed_file_is_named_and_another_fingerprint(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "in")
    data = parquet(copy, storage="files")
    before = data.fingerprint()
    assert before == parquet(copy).fingerprint()
    data.build(tmp_path / "built")
    write(copy / "train-00001-of-00003.parquet", range(21))
    assert data.fingerprint() != before
    pairs = open_pairs(tmp_path / "built")
    pairs._rows._here.clear()
    with pytest.raises(RuntimeError, match=r"train-00001.*has changed since it was listed"):
        pairs.images(np.array([25]))


def test_the_fingerprint_follows_the_images_that_are_only_named(tmp_path):
    file = write(tmp_path / "data.parquet", range(6), form="hf_paths")
    before = parquet(file).fingerprint()
    (tmp_path / "images/3.png").write_bytes(picture(3) + b" ")
    assert parquet(file).fingerprint() != before


def test_a_subset_is_drawn_by_the_seed_and_the_rest_has_no_score(folder, tmp_path):
    data = parquet(folder, subset=25, seed=3)
    data.build(tmp_path)
    pairs = open_pairs(tmp_path)
    assert len(pairs) == 25
    unscored = find_unscored(data, tmp_path, pairs.ids)
    assert unscored.counts() == {"not in the subset": 35}
    with pytest.raises(ValueError, match=r"data.subset=61 is more than the 60 rows"):
        parquet(folder, subset=61).build(tmp_path / "more")


def test_some_samples_are_held_out_for_evaluation(folder, tmp_path):
    data = parquet(folder, holdout=0.3, classes=list(COLOURS), max_test=7, storage="files")
    data.build(tmp_path)
    pairs, test = open_pairs(tmp_path), open_test(tmp_path)
    assert (len(test), len(pairs)) == (7, 53)
    np.testing.assert_array_equal(test.images(np.arange(7))[:, 8, 8], np.array(list(COLOURS.values()))[test.labels])
    assert find_unscored(data, tmp_path, pairs.ids).counts() == {"held out": 7}


def test_what_is_known_of_a_sample_is_kept(tmp_path):
    meta = [json.dumps({"uid": f"u{row}", "width": 24, "sha256": "ab" * 32}) for row in range(3)]
    write(tmp_path / "a.parquet", range(3), URL=[f"http://a.org/{row}\x1b" for row in range(3)], json=meta)
    write(tmp_path / "b.parquet", range(2), __key__=["x", "y"], width=[7, -1], height=pa.array([None, 8]))
    data = parquet(tmp_path)
    data.build(tmp_path / "built")
    found = origins(data, open_pairs(tmp_path / "built").ids)
    assert found["shard"] == ["a.parquet"] * 3 + ["b.parquet"] * 2
    assert found["key"] == ["0", "1", "2", "x", "y"]
    assert found["url"] == [f"http://a.org/{row}\\x1b" for row in range(3)] + [None, None]
    assert found["uid"] == ["u0", "u1", "u2", None, None]
    assert found["width"] == [24, 24, 24, 7, None]
    assert found["height"] == [None, None, None, None, 8]
    assert found["sha256"] == ["ab" * 32] * 3 + [None] * 2
    ids = open_pairs(tmp_path / "built").ids
    assert list(data.contents(ids[[4, 0]])) == [picture(1), picture(0)]


def test_pictures_alone(folder, tmp_path):
    data = parquet(folder, caption_key="none", holdout=0.2)
    assert not data.has_captions
    data.build(tmp_path)
    assert set(open_pairs(tmp_path).captions) == {""}
    assert parquet(folder).has_captions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"img_key": "imag"},
            r"data.img_key='imag' is no column: .* columns 'image', 'caption'; did you mean 'image'",
        ),
        ({"caption_key": "cap"}, "data.caption_key='cap' is no column"),
        ({"subset": 0}, "data.subset must be at least 1, got 0"),
        ({"storage": "disk"}, "data.storage must be one of auto, array, files, got 'disk'"),
        ({"root": "nowhere"}, "data.root must be the folder of the images, but there is no folder 'nowhere'"),
        ({"size": 0}, "data.size must be at least 1 pixel, got 0"),
        ({"holdout": 1.0}, r"data.holdout must lie in \[0, 1\)"),
        ({"path": "nowhere.parquet"}, "names 1 files, but none of them exists"),
        ({"path": "hf://datasets/x/*.parquet"}, "is not local: fetch"),
        ({"path": "https://x.org/a.parquet"}, "is not local: fetch"),
        ({"path": []}, "data.path must name Parquet files, got an empty list"),
    ],
)
def test_bad_options_are_refused_on_construction(folder, options, message):
    with pytest.raises(ValueError, match=message) as refused:
        Parquet(**{"path": str(folder), "size": 16, **options})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [1, 2], "caption": ["a", "b"]}, "has no column of images .*'image', 'caption'.*data.img_key"),
        ({"image": [b"a"], "label": [1]}, "no column of captions .*'label'.*data.caption_key=none"),
        ({"image": [b"a"], "caption": [1]}, "no column of captions"),
        ({"url": ["a"], "caption": ["a"], "key": ["1"]}, "img2dataset wrote beside its tars"),
    ],
)
def test_columns_that_cannot_be_guessed_are_listed(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        parquet(tmp_path)


def test_a_column_of_another_type_is_refused(tmp_path):
    pq.write_table(pa.table({"image": [b"a"], "n": [1], "caption": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"data.img_key='n' holds int64, neither bytes nor paths"):
        parquet(tmp_path, img_key="n")
    with pytest.raises(ValueError, match=r"data.caption_key='n' holds int64, no texts"):
        parquet(tmp_path, caption_key="n")


def test_files_that_are_no_parquet_and_links_are_refused(folder, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"1 files that cannot be read: .*neither Parquet nor Arrow"):
        parquet(tmp_path)
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.parquet").symlink_to(folder / "train-00000-of-00003.parquet")
    with pytest.raises(ValueError, match=r"data.path: .* is a link out of the folder.*data.follow_links=true"):
        parquet(tmp_path)
    assert len(parquet(tmp_path, follow_links=True).files()) == 1


@pytest.mark.parametrize("seed", range(12))
def test_bytes_that_are_changed_at_random_end_in_damage_or_one_line(tmp_path, seed):
    draw = np.random.default_rng(seed)
    file = write(tmp_path / "a.parquet", range(20), url=[f"http://a.org/{row}" for row in range(20)])
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    places = draw.integers(0, len(content), 3)
    content[places] = draw.integers(0, 256, 3)
    file.write_bytes(content.tobytes())
    said = None
    try:
        data = parquet(file, max_damaged=1.0, storage="files")
        data.fingerprint()
        data.build(tmp_path / "built")
        pairs = open_pairs(tmp_path / "built")
        pairs.images(np.arange(len(pairs)))
        data.known(np.asarray(pairs.ids))
    except ValueError as refused:
        said = str(refused)
    assert said is None or (said.startswith("data.") and "\n" not in said)


def test_a_file_that_claims_more_rows_than_it_has(tmp_path, monkeypatch):
    """Its ids alone would fill the memory; a group that ends early costs the rows that it lacks."""
    file = write(tmp_path / "a.parquet", range(20))
    true_starts = row_readers.ParquetRows(str(file)).starts
    data = parquet(file, max_damaged=1.0, storage="files")
    monkeypatch.setattr(row_readers, "_ROWS", -(10**6))
    with pytest.raises(ValueError, match=r"a.parquet: it claims 20 rows in [\d,]+ bytes"):
        data.build(tmp_path / "built")
    monkeypatch.undo()
    original = row_readers.ParquetRows.__init__

    def claiming(self, path):
        original(self, path)
        self.starts = true_starts + np.array([0, 0, 0, 5])
        self.rows = 25

    monkeypatch.setattr(row_readers.ParquetRows, "__init__", claiming)
    data.build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"] == {"broken row group": 5}
    assert len(open_pairs(tmp_path / "built")) == 20
    rows = RowFiles((str(file),), "image")
    with pytest.raises(DecodeError, match="broken row group: it ends early"):
        rows.read("a.parquet:24")


def test_a_column_whose_name_is_no_text_is_refused_in_one_line(tmp_path):
    file = write(tmp_path / "a.parquet", range(3), zzzzzz=[1, 2, 3])
    file.write_bytes(file.read_bytes().replace(b"zzzzzz", b"\xffzzzzz"))
    with pytest.raises(ValueError, match=r"cannot be read: .*a.parquet: 'utf-8' codec"):
        parquet(file)
