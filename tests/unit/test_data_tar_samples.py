"""Samples of shards: keys that come back, dots in names, unsorted tars, hidden files, hostile names, captions."""

import csv
import io
import json

import numpy as np
import pytest
from PIL import Image

from experiments.data.damage import TooMuchDamage
from experiments.data.image_decoding import Limits
from experiments.data.pairs import open_pairs
from experiments.data.provenance import origins, sample_members
from experiments.data.sample_ids import POSITIONS
from experiments.data.shards import Shards
from experiments.data.tar_index import Fields, index_shard, read_samples
from tests.unit.test_data_tar_members import header, index_of, make_tar, padded, pax


@pytest.fixture(scope="module")
def jpeg():
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "JPEG")
    return stream.getvalue()


def build(folder, content, **options):
    (folder / "00.tar").write_bytes(content)
    shards = Shards(f"{folder}/00.tar", **{"size": 32, "holdout": 0, **options})
    shards.build(folder / "built")
    return listed(folder)


def listed(folder):
    with open(folder / "built/damage.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_key_that_comes_back_is_a_sample_of_its_own(tmp_path, jpeg):
    """As WebDataset trains on it; the poison of such a key does not pass unread."""
    keys = ["a", "b", "a", "c", "a", "a"]
    files = [
        (f"{key}.{e}", jpeg if e == "jpg" else f"{i}".encode())
        for i, key in enumerate(keys)
        for e in ("jpg", "txt")
    ]
    rows = build(tmp_path, make_tar(files))
    pairs = open_pairs(tmp_path / "built")
    assert list(pairs.captions) == ["0", "1", "2", "3", "4", "5"]
    assert [(int(row["id"]) % POSITIONS, row["kind"], row["left_out"]) for row in rows] == [
        (position, "duplicate key", "0") for position in (2, 4, 5)
    ]


def test_files_under_one_dotted_name_count_as_many(tmp_path, jpeg):
    files = [(f"cat.{i}.{e}", jpeg) for i in range(200) for e in ("jpg", "txt")]
    good = [(f"dog_{i}.{e}", jpeg if e == "jpg" else b"dog") for i in range(100) for e in ("jpg", "txt")]
    with pytest.raises(
        TooMuchDamage, match=r"200 of 300 samples left out.*missing image 200.*rename cat.7.jpg"
    ) as stop:
        build(tmp_path, make_tar(files + good))
    assert len(str(stop.value)) < 1000
    rows = listed(tmp_path)
    assert [(row["source"], row["left_out"]) for row in rows] == [("00.tar:cat", "200")]
    assert rows[0]["detail"].endswith("and 394 more files; keys with dots?")
    assert len(rows[0]["detail"]) < 200
    (tmp_path / "built/damage.csv").unlink()
    with pytest.raises(TooMuchDamage, match="200 of 200 samples"):
        build(tmp_path, make_tar(files))


def test_other_dots_are_named_and_other_images_noted():
    files = [("1.a.jpg", b"x"), ("1.a.txt", b"t"), ("2.jpg", b"x"), ("2.seg.png", b"x"), ("2.txt", b"t")]
    index = index_of(make_tar(files))
    assert [(f.id, f.kind, f.detail, f.note) for f in index.issues] == [
        (0, "missing image", "has a.jpg, a.txt; keys with dots?", False),
        (1, "several images, one used", "", True),
    ]
    assert index_of(make_tar(files), Fields(("a.jpg",), ("a.txt",))).captions == ["t"]


def test_an_unsorted_tar_is_named_with_the_command_that_sorts_it(tmp_path, jpeg):
    images = [(f"{i:03d}.jpg", jpeg) for i in range(30)]
    captions = [(f"{i:03d}.txt", b"a caption") for i in range(30)]
    with pytest.raises(TooMuchDamage, match=r"unsorted tar.*tar --sort=name -cf NEW.tar") as stop:
        build(tmp_path, make_tar(images + captions))
    assert "Issue" not in str(stop.value)
    assert len(str(stop.value)) < 1000
    rows = listed(tmp_path)
    assert {row["kind"] for row in rows} == {"unsorted tar"}
    with pytest.raises(
        ValueError, match=r"holds no usable sample: 60 of 60 .*All are listed in .*damage.csv"
    ) as stop:
        build(tmp_path, make_tar(images + captions), max_damaged=1)
    assert "Issue" not in str(stop.value)


@pytest.mark.parametrize("keys", [["JPG"], [".jpg"], [".Jpg", "png"], "jpg;png", "png, .JPG"])
def test_endings_are_given_in_any_case_and_with_or_without_a_dot(keys):
    content = make_tar([("1.jpg", b"x"), ("1.TXT", b"t")])
    assert index_of(content, Fields(keys, [".TXT"])).captions == ["t"]


@pytest.mark.parametrize("keys", [[], "", [""], ["."], ["jpg", ""]])
def test_endings_that_are_none_are_refused(tmp_path, keys):
    (tmp_path / "0.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"data.image_keys must name file endings"):
        Shards(str(tmp_path), size=32, image_keys=keys)


def test_hidden_files_and_what_macos_adds_belong_to_no_sample():
    files = [("._1.jpg", b"m"), ("1.jpg", b"x"), (".DS_Store", b"m"), ("1.txt", b"t"), ("__MACOSX/._1.jpg", b"m")]
    files += [("d/.DS_Store", b"m"), ("d/1.jpg", b"x"), ("d/._1.jpg", b"m"), ("d/1.txt", b"u"), ("README", b"m")]
    index = index_of(make_tar(files))
    assert (index.captions, index.issues) == (["t", "u"], [])


def test_a_sample_without_a_stem_is_read_where_webdataset_reads_it():
    """WebDataset takes `d/.jpg` and `d/.txt` for a sample, so it must not pass unread."""
    index = index_of(make_tar([("d/.jpg", b"x"), ("d/.txt", b"t"), (".jpg", b"x")]))
    assert (index.captions, index.samples) == (["t"], 1)


NESTED = b'{"caption": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.mark.parametrize(
    ("caption", "kind"),
    [
        (b'{"caption": "a \\ud800 b"}', "broken caption"),
        (NESTED, "broken caption"),
        (b'{"caption": ' + b"9" * 10_000 + b"}", "broken caption"),
        (b"[1, 2]", "broken caption"),
        (b'{"caption": NaN}', "missing caption"),
        (b'{"caption": []}', "missing caption"),
        (b'{"caption": {"en": "x"}}', "broken caption"),
        (b'{"caption": "' + b"x" * (5 << 20) + b'"}', "broken caption"),
    ],
)
def test_a_hostile_caption_is_damage_of_its_sample(tmp_path, jpeg, caption, kind):
    files = [("1.jpg", jpeg), ("1.json", b'{"caption": "one"}'), ("2.jpg", jpeg), ("2.json", caption)]
    rows = build(tmp_path, make_tar([*files, ("3.jpg", jpeg), ("3.txt", b"three")]), max_damaged=0.5)
    assert list(open_pairs(tmp_path / "built").captions) == ["one", "three"]
    assert [(row["source"], row["kind"]) for row in rows] == [("00.tar:2", kind)]
    assert len(rows[0]["detail"]) < 300


def test_a_caption_that_cannot_be_used_leaves_the_next_ending_to_be_tried():
    index = index_of(make_tar([("1.jpg", b"x"), ("1.txt", b"  "), ("1.json", b'{"caption": ["j", "k"]}')]))
    assert index.captions == ["j"]
    assert [issue.kind for issue in index.issues] == ["list of captions, first taken"]


@pytest.mark.parametrize(
    "name", [b"\xff2", b"2\x1b[2J\x1b]0;owned\x07", b"=cmd()", "2‮gpj".encode(), b"x/" * 90 + b"2"]
)
def test_names_are_harmless_where_they_are_shown(tmp_path, jpeg, name):
    records = b" path=" + name + b".jpg\n"
    records = b"%d" % (len(records) + (2 if len(records) < 97 else 3)) + records
    content = make_tar([("1.jpg", jpeg), ("1.txt", b"one")]).rstrip(b"\0")
    content += bytes(-len(content) % 512) + pax(records) + header(b"x") + padded(b"no caption") + bytes(1024)
    rows = build(tmp_path, content, max_damaged=0.6)
    assert list(open_pairs(tmp_path / "built").captions) == ["one"]
    assert len(rows) == 1
    assert rows[0]["kind"] == ("broken name" if name[:1] == b"\xff" else "missing caption")
    text = (tmp_path / "built/damage.csv").read_text(encoding="utf-8")
    assert not any(sign in text for sign in ("\x1b", "\x07", "‮"))
    keys = [key for key, _ in sample_members(io.BytesIO(content), len(content))]
    assert len(keys) == 2
    assert keys[1].encode().decode().isprintable()  # a table can hold it


def test_links_beside_a_whole_sample_do_not_disqualify_it():
    """WebDataset passes over links: what it trains on is read."""
    link = header(b"2.json", b"0" * 11, b"1", more={157: b"1.json"})
    content = make_tar([("1.jpg", b"x"), ("1.txt", b"t")])[:2048]
    content += header(b"2.jpg") + padded(b"x" * 10) + link + header(b"2.txt") + padded(b"the second")
    only = header(b"3.jpg", b"0" * 11, b"1", more={157: b"1.jpg"})
    index = index_of(content + only + bytes(1024))
    assert index.captions == ["t", "the second"]
    assert [(f.id, f.kind, f.detail) for f in index.issues] == [(2, "hard link", "to '1.jpg'")]
    assert index.samples == 3


def test_a_cut_sample_has_a_position_and_its_damage():
    content = make_tar([(f"{i}.{e}", b"a" * 1000) for i in range(6) for e in ("jpg", "txt")])
    size = 512 + len(padded(b"a" * 1000))
    content = content[: 9 * size]
    samples = []
    with pytest.raises(Exception, match="ends without an end mark"):
        samples.extend(read_samples(io.BytesIO(content), len(content)))
    index = index_shard(io.BytesIO(content), len(content), "x", Fields(), Limits())
    assert index.samples == 5
    assert [(issue.id, issue.kind) for issue in index.issues] == [(4, "broken tar"), (-1, "broken tar")]
    assert json.dumps([vars(issue) for issue in index.issues])


@pytest.mark.parametrize(
    "about",
    [NESTED, b'{"url": "http://a/\\ud800\\u001b[2J"}', b'{"url": {"a": 1}}', b"[]", b"\xff", b'{"url": ""}'],
)
def test_a_hostile_json_beside_a_sound_caption_does_not_stop_a_scan(tmp_path, jpeg, about):
    """Its address goes into the scan's table."""
    files = [("1.jpg", jpeg), ("1.txt", b"one"), ("1.json", about), ("2.jpg", jpeg), ("2.txt", b"two")]
    assert build(tmp_path, make_tar([*files, ("2.json", b'{"url": "http://host/2.jpg"}')])) == []
    shards = Shards(f"{tmp_path}/00.tar", size=32, holdout=0)
    found = origins(shards, open_pairs(tmp_path / "built").ids)
    assert (found["key"], found["url"][1]) == (["1", "2"], "http://host/2.jpg")
    assert found["url"][0] is None or found["url"][0].encode().decode().isprintable()
