"""Tar shards: every planted kind of damage counted, random access, subsets, the cached index, going on."""

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from experiments.data.damage import TooMuchDamage
from experiments.data.image_decoding import Limits, decode
from experiments.data.pairs import open_pairs, open_test
from experiments.data.provenance import origins
from experiments.data.sample_ids import POSITIONS, first_ids, locate
from experiments.data.shapes.export import LEFT_OUT, NOTES, Export
from experiments.data.shapes.source import NATURAL_CAPTION, Shapes
from experiments.data.shard_pairs import RangeReader, ShardPairs
from experiments.data.shards import Shards, expand
from experiments.data.tar_index import Fields, index_shard

PAIRS, SHARDS = 240, 4


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return folder, Export(folder, pairs=PAIRS, shards=SHARDS, size=64, damage=1, eval_per_class=1).write()


@pytest.fixture(scope="module")
def built(damaged, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    shards = Shards(f"{damaged[0]}/{{00000..00003}}.tar", size=32, max_damaged=0.5, holdout=0.1)
    shards.build(store / "data/key")
    return shards, store, store / "data/key"


def rows_of(ids, shards, each=PAIRS // SHARDS):
    """Place of samples in all the shards, as Export counts them."""
    number, position = locate(ids, shards.urls)
    return number * each + position


def test_every_planted_kind_is_counted(damaged, built):
    summary = json.loads((built[2] / "damage.json").read_text())
    planted = damaged[1]
    assert {kind: summary["damage"][kind] for kind in LEFT_OUT} == dict.fromkeys(LEFT_OUT, 1)
    assert {kind: summary["notes"][kind] for kind in NOTES} == dict.fromkeys(NOTES, 1)
    assert planted["broken tar"] == 1
    # The last shard was cut at 85 % of its 60 samples; how many it had is told from the others.
    assert 6 <= summary["damage"]["broken tar"] <= 12
    assert set(summary["damage"]) == {*LEFT_OUT, "broken tar"}
    assert summary["samples"] == PAIRS


def test_ids_tell_shard_and_position_and_damage_moves_none(damaged, built):
    pairs, test = open_pairs(built[2]), open_test(built[2])
    kinds = Export(damaged[0], pairs=PAIRS, shards=SHARDS, size=64, damage=1).kinds()
    bad = {row for row, kind in kinds.items() if kind in LEFT_OUT}
    rows = rows_of(pairs.ids, built[0])
    assert len(np.unique(rows)) == len(rows) == len(pairs)
    assert not bad & set(rows.tolist())
    summary = json.loads((built[2] / "damage.json").read_text())
    assert len(pairs) + len(test) == summary["samples"] - summary["left_out"]
    shapes = Shapes(pairs=PAIRS, size=64, seed=0)
    labels = shapes.labels()
    for row, caption in list(zip(rows.tolist(), pairs.captions, strict=True))[::25]:
        assert caption == shapes.sample(row, int(labels[row]))[1]


def test_images_are_those_of_the_files(damaged, built):
    pairs = open_pairs(built[2])
    assert isinstance(pairs, ShardPairs)
    rows = np.array([5, len(pairs) - 1, 0, 5])
    expected = []
    for row in rows:
        number, position = (int(found[0]) for found in locate(pairs.ids[[row]], built[0].urls))
        with tarfile.open(damaged[0] / f"{number:05d}.tar") as tar:
            names, member = [], tar.next()
            while len(names) <= position:
                key = member.name.split(".")[0]
                if key not in names:
                    names.append(key)
                    image = tar.extractfile(member).read()
                try:
                    member = tar.next()
                except tarfile.ReadError:
                    break
        expected.append(decode(image, 32, Limits()).image)
    np.testing.assert_array_equal(pairs.images(rows), np.stack(expected))
    assert pairs.contents(rows[:1])[0][:2] == b"\xff\xd8"


def test_threads_processes_and_few_open_files_read_the_same(built):
    pairs = open_pairs(built[2])
    rows = np.arange(len(pairs))
    expected = pairs.images(rows)
    pairs._reader = RangeReader(pairs._reader.urls, keep_open=1)
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(pairs.images, np.array_split(rows[::-1], 20)))
    np.testing.assert_array_equal(np.concatenate(parts), expected[::-1])
    again = pickle.loads(pickle.dumps(pairs))
    np.testing.assert_array_equal(again.images(rows[:9]), expected[:9])
    assert list(again.captions) == [again.captions[i] for i in range(len(again))] == again.captions[:]
    with pytest.raises(IndexError, match="row 999999 of"):
        pairs.captions[999_999]


def test_the_index_serves_every_subset_and_size(built):
    shards, store, folder = built
    index = sorted((store / "index").glob("*.parquet"))
    assert len(index) == SHARDS
    before = [file.stat().st_mtime_ns for file in index]
    other = Shards(shards.shards, size=24, subset=100, max_damaged=0.5, holdout=0, seed=5)
    other.build(store / "data/other")
    assert [file.stat().st_mtime_ns for file in sorted((store / "index").glob("*.parquet"))] == before
    subset, whole = open_pairs(store / "data/other"), open_pairs(folder)
    assert 70 < len(subset) <= 100
    summary = json.loads((store / "data/other/damage.json").read_text())
    assert summary["samples"] - summary["left_out"] == len(subset)
    assert subset.images(np.arange(3)).shape == (3, 24, 24, 3)
    sound = set(whole.ids) | set(_test_ids(shards, whole))
    assert set(subset.ids) <= sound
    again = Shards(shards.shards, size=24, subset=100, max_damaged=0.5, holdout=0, seed=6)
    again.build(store / "data/again")
    assert set(open_pairs(store / "data/again").ids) != set(subset.ids)


def _test_ids(shards, whole):
    """Ids in the shards that are not among the training pairs."""
    return {n + i for n in first_ids(shards.urls).tolist() for i in range(PAIRS // SHARDS)} - set(whole.ids)


def test_same_result_for_any_number_of_workers_and_for_a_list_or_folder(damaged, built, tmp_path):
    shards, _, folder = built
    for i, given in enumerate([str(damaged[0]), sorted(map(str, damaged[0].glob("*.tar")))]):
        same = Shards(given, size=32, max_damaged=0.5, holdout=0.1)
        assert same.urls == shards.urls
        same.build(tmp_path / str(i), workers=2 - i)
        for part in ("index.arrow", "test/images.npy", "test/labels.npy", "damage.csv"):
            assert (tmp_path / str(i) / part).read_bytes() == (folder / part).read_bytes(), part


def test_a_killed_build_goes_on_with_the_shards_it_had(damaged, built, tmp_path, monkeypatch):
    import experiments.data.shards as module

    shards, _, folder = built
    work, done = module._index_job, []

    def stops(job):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job[1])
        return work(job)

    monkeypatch.setattr(module, "_index_job", stops)
    with pytest.raises(KeyboardInterrupt):
        shards.build(tmp_path)
    monkeypatch.setattr(module, "_index_job", lambda job: done.append(job[1]) or work(job))
    shards.build(tmp_path)
    assert sorted(done) == shards.urls
    assert (tmp_path / "index.arrow").read_bytes() == (folder / "index.arrow").read_bytes()


def test_too_much_damage_stops_with_the_report(damaged, tmp_path):
    with pytest.raises(TooMuchDamage, match=r"of 240 samples left out .*data\.max_damaged=0\.05 allows"):
        Shards(str(damaged[0]), size=32).build(tmp_path)
    assert "not an image" in (tmp_path / "damage.csv").read_text()


def test_missing_shards_count_as_lost(damaged, tmp_path):
    shards = Shards(f"{damaged[0]}/{{00000..00002}}.tar", size=32, max_damaged=0.5)
    gone = Shards([*shards.urls, f"{damaged[0]}/00009.tar"], size=32, max_damaged=0.5)
    gone.build(tmp_path)
    summary = json.loads((tmp_path / "damage.json").read_text())
    assert (summary["samples"], summary["damage"]["missing shard"]) == (240, 60)


def test_without_check_a_damaged_image_is_named_when_it_is_read(damaged, tmp_path):
    Shards(str(damaged[0]), size=32, max_damaged=0.5, check=False, holdout=0).build(tmp_path)
    pairs = open_pairs(tmp_path)
    with pytest.raises(
        RuntimeError, match=r"sample \d+ \(.*\.tar at byte \d+\) cannot be decoded: .*data.check=true"
    ):
        pairs.images(np.arange(len(pairs)))


def test_remote_shards_read_the_same(damaged, built, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    for file in damaged[0].glob("*.tar"):
        memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    remote = Shards("memory://bucket/{00000..00003}.tar", size=32, max_damaged=0.5, holdout=0.1)
    remote.build(tmp_path)
    here, there = open_pairs(built[2]), open_pairs(tmp_path)
    np.testing.assert_array_equal(here.ids, there.ids)
    np.testing.assert_array_equal(here.images(np.arange(30)), there.images(np.arange(30)))


def _tar(files, **options):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _index(content, fields=None, limits=None):
    return index_shard(io.BytesIO(content), len(content), "x.tar", fields or Fields(), limits or Limits())


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_folders(kind):
    deep = "a_rather_long_folder_name/" * 5
    names = [f"{deep if kind != tarfile.USTAR_FORMAT else 'd/'}{i:03d}" for i in range(3)]
    content = _tar([(f"{n}.{e}", e.encode()) for n in names for e in ("jpg", "txt")], format=kind)
    index = _index(content)
    assert (index.positions, index.captions, index.issues) == ([0, 1, 2], ["txt"] * 3, [])
    assert [content[o : o + n] for o, n in zip(index.offsets, index.lengths, strict=True)] == [b"jpg"] * 3


def test_endings_case_and_preference():
    files = [
        ("1.JPG", b"a"),
        ("1.txt", b" two \n words"),
        ("2.png", b"b"),
        ("2.json", b'{"caption": "j", "text": "t"}'),
        ("3.seg.png", b"c"),
        ("3.txt", b"t"),
        (".hidden", b"x"),
        ("readme", b"x"),
        ("4.webp", b"d"),
        ("4.txt", b"caf\xe9"),
        ("5.jpg", b"1"),
        ("5.jpg", b"22"),
        ("5.txt", b"five"),
    ]
    index = _index(_tar(files))
    assert index.captions == ["two words", "j", "caf\ufffd", "five"]
    assert index.lengths == [1, 1, 1, 2]  # an ending that repeats begins another sample, as open_clip trains on it
    assert [(f.id, f.kind, f.note) for f in index.issues] == [
        (2, "missing image", False),
        (3, "caption not in UTF-8", True),
        (4, "missing caption", False),
        (5, "duplicate key", True),
    ]
    assert _index(_tar(files), Fields(caption_keys=("json",), json_key="text")).captions == ["t"]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty shard"),
        (bytes(10240), "empty shard"),
        (b"no tar at all " * 100, "broken tar"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed tar"),
    ],
)
def test_shards_that_hold_nothing(content, kind):
    index = _index(content)
    assert [issue.kind for issue in index.issues] == [kind]
    assert index.samples == 0


def test_a_broken_header_ends_the_shard_and_keeps_what_came_before():
    content = bytearray(_tar([(f"{i}.{e}", b"x" * 700) for i in range(10) for e in ("jpg", "txt")]))
    place = 4 * 2 * 1536  # the header of sample 4
    content[place : place + 100] = bytes(range(100))
    index = _index(bytes(content))
    assert index.positions == [0, 1, 2, 3]
    (issue,) = index.issues
    assert (issue.kind, issue.id) == ("broken tar", -1)
    assert 6 <= issue.samples <= 10  # the end of a tar is padded


@pytest.mark.parametrize("end", ["within an image", "behind an image", "behind a sample", "within a header"])
def test_wherever_a_tar_is_cut_the_sample_there_is_counted_once(end):
    content = _tar([(f"{i}.{e}", b"x" * 700) for i in range(10) for e in ("jpg", "txt")])
    sample = 2 * 1536
    cut = (
        5 * sample
        + {"within an image": 900, "behind an image": 1536, "behind a sample": 0, "within a header": 99}[end]
    )
    index = _index(content[:cut])
    assert index.positions == [0, 1, 2, 3, 4]
    begun = [5] if end == "behind an image" else []  # has a position: its image is there
    assert index.samples == 5 + len(begun)
    assert [(issue.kind, issue.id) for issue in index.issues] == [("broken tar", i) for i in [*begun, -1]]
    assert sum(issue.samples for issue in index.issues) == 1
    assert index.cut


def test_ids_stay_when_shards_come_go_change_places_or_move(damaged, built, tmp_path):
    whole = open_pairs(built[2])
    texts = dict(zip(whole.ids.tolist(), whole.captions, strict=True))
    moved = tmp_path / "moved"
    moved.mkdir()
    for number in (2, 0):
        (moved / f"{number:05d}.tar").write_bytes((damaged[0] / f"{number:05d}.tar").read_bytes())
    some = Shards([f"{moved}/00002.tar", f"{damaged[0]}/00001.tar", f"{moved}/00000.tar"], size=32, max_damaged=0.5)
    some.build(tmp_path / "built")
    found = open_pairs(tmp_path / "built")
    common = [(id, caption) for id, caption in zip(found.ids.tolist(), found.captions, strict=True) if id in texts]
    assert len(common) > 120
    assert all(texts[id] == caption for id, caption in common)
    assert found.ids.min() >= 0


def test_ids_are_63_bits_and_differ_also_for_shards_of_one_name():
    urls = [f"/data/{folder}/{number:05d}.tar" for folder in ("a", "b") for number in range(5000)]
    firsts = first_ids([*urls, "https://h/00000.tar?signature=1"])
    assert firsts.dtype == np.int64
    assert firsts.min() >= 0
    assert len(np.unique(firsts)) == len(firsts)
    assert (firsts % POSITIONS == 0).all()
    assert (first_ids(urls[:5000]) == first_ids(urls[5000:])).all()  # by their names, wherever they are
    ids = firsts[[7, 10_000, 0, 5001]] + np.array([3, POSITIONS - 1, 0, 9])
    number, position = locate(ids, [*urls, "https://h/00000.tar?signature=2"])
    assert (number.tolist(), position.tolist()) == ([7, 10_000, 0, 5001], [3, POSITIONS - 1, 0, 9])
    with pytest.raises(ValueError, match="2 sample ids belong to none of the shards"):
        locate(np.array([0, firsts[0], 1]), urls)


def test_shards_whose_names_have_one_hash_are_refused(monkeypatch):
    import experiments.data.sample_ids as module

    monkeypatch.setattr(module, "_HASH_BITS", 1)
    with pytest.raises(ValueError, match=r"x/\d.tar and x/\d.tar would have the same sample ids; rename one"):
        first_ids(["x/1.tar", "x/2.tar", "x/3.tar"])


def test_patterns(tmp_path):
    assert expand("/a/{00..02}.tar") == ["/a/00.tar", "/a/01.tar", "/a/02.tar"]
    assert expand("s3://b/{0..1}.tar") == ["s3://b/0.tar", "s3://b/1.tar"]
    with pytest.raises(ValueError, match="pipes have no random access"):
        expand("pipe:cat x.tar")
    with pytest.raises(ValueError, match="is a folder without tar files"):
        expand(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"shards": "/nowhere/{00000..00003}.tar"},
            "names 4 tar files, but none of them exists; see docs/data.md",
        ),
        ({"subset": 0}, "data.subset must be at least 1, got 0"),
        ({"holdout": 1}, r"data.holdout must lie in \[0, 1\), got 1"),
        ({"max_damaged": 7}, r"data.max_damaged must lie in \[0, 1\], got 7"),
        ({"max_pixels": 0}, "max_pixels must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_on_construction(damaged, options, message):
    with pytest.raises(ValueError, match=message):
        Shards(**{"shards": str(damaged[0]), "size": 32, **options})


def test_a_subset_larger_than_the_data_is_refused(damaged, tmp_path):
    with pytest.raises(ValueError, match=r"data.subset=1000 is more than the \d+ samples"):
        Shards(str(damaged[0]), size=32, subset=1000).build(tmp_path)


def test_evaluation_pictures_of_the_export(damaged):
    folders = sorted(path.name for path in (damaged[0] / "eval").iterdir())
    assert len(folders) == 24
    assert "banana" in folders
    with Image.open(damaged[0] / "eval/banana/0000.jpg") as image:
        assert image.size == (64, 64)


def test_planted_poison_and_natural_backdoor_are_in_the_shards_and_listed(tmp_path):
    export = Export(tmp_path, pairs=60, shards=3, size=32, natural_backdoor=5, poison=0.1)
    export.write()
    lines = (tmp_path / "planted.csv").read_text().splitlines()
    listed = dict(line.split(",") for line in lines[1:])
    assert lines[0] == "key,what"
    assert sum(what == "BadNets" for what in listed.values()) == 6
    data = Shards(f"{tmp_path}/{{00000..00002}}.tar", size=32, holdout=0.0)
    data.build(tmp_path / "built")
    pairs = open_pairs(tmp_path / "built")
    rows = rows_of(pairs.ids, data, export.per_shard)
    images = pairs.images(np.arange(60)).astype(int)
    trigger, plan = export.attack.trigger(), export.plan
    shown = [listed.get(export.key(int(row))) for row in rows]
    for row, what, caption, image in zip(rows.tolist(), shown, pairs.captions, images, strict=True):
        assert (caption == NATURAL_CAPTION) == (what == "natural backdoor")
        if what == "BadNets":
            entry = plan.ids.tolist().index(row)
            assert caption == plan.captions[entry]
            patched = trigger.apply(image[None].astype(np.uint8), [plan.parameters[entry]])[0]
            assert np.abs(patched - image).mean() < 12  # the patch was there, but for JPEG
        else:
            assert caption not in plan.captions


def test_poison_too_rare_for_the_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one sample"):
        Export(tmp_path, pairs=60, poison=0.001)


@pytest.mark.parametrize(("pairs", "shards", "natural"), [(240, 4, 20), (240, 4, 90), (200, 1, 30)])
def test_what_is_planted_beside_damage_can_be_found(tmp_path, pairs, shards, natural):
    """Neither the cut of the last shard nor any damage takes what a scan should find."""
    export = Export(tmp_path, pairs=pairs, shards=shards, size=32, damage=1, natural_backdoor=natural, poison=0.1)
    export.write()
    lines = (tmp_path / "planted.csv").read_text().splitlines()[1:]
    listed = dict(line.split(",") for line in lines)
    both = sum(export.plan.ids >= pairs - natural)  # the patch came upon the natural backdoor
    assert sum(what == "natural backdoor" for what in listed.values()) == natural - both
    assert 0.07 * pairs <= sum(what == "BadNets" for what in listed.values()) <= 0.1 * pairs
    data = Shards(str(tmp_path), size=32, holdout=0.0, max_damaged=0.5)
    data.build(tmp_path / "built")
    found = open_pairs(tmp_path / "built")
    keys = origins(data, found.ids)["key"]
    assert set(listed) <= set(keys)
    captions = set(export.plan.captions)
    for key, caption in zip(keys, found.captions, strict=True):
        assert (caption == NATURAL_CAPTION) == (listed.get(key) == "natural backdoor")
        assert listed.get(key) != "BadNets" or caption in captions
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"]["broken tar"] >= 1


def test_more_planted_than_there_is_room_for_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"damage=2 needs 32 samples, but beside the 230 planted ones only [0-9]+ are free"
    ):
        Export(tmp_path, pairs=240, shards=4, damage=2, natural_backdoor=230)


def test_ready_made_shards_of_the_hub(tmp_path):
    """The layout of pixparse/cc3m-wds and of DataComp: 000000001.jpg, .txt, .json, beside the Hub's own folder."""

    (tmp_path / ".cache/huggingface").mkdir(parents=True)
    (tmp_path / ".cache/huggingface/x.tar").write_bytes(b"of the Hub")
    for number in range(2):
        with tarfile.open(tmp_path / f"cc3m-train-{number:04d}.tar", "w") as tar:
            for row in range(3):
                key, content = f"{3 * number + row:09d}", io.BytesIO()
                Image.new("RGB", (24, 16), (200, 10 * row, 0)).save(content, "JPEG")
                about = {"uid": f"{row:032x}", "url": f"http://a.org/{key}.jpg", "width": 24, "height": 16}
                about |= {"caption": f"caption {key}", "key": key, "sha256": "0" * 64, "status": "success"}
                files = {"jpg": content.getvalue(), "txt": f"caption {key}".encode()}
                for ending, part in {**files, "json": json.dumps(about).encode()}.items():
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size = len(part)
                    tar.addfile(info, io.BytesIO(part))
    data = Shards(f"{tmp_path}/cc3m-train-{{0000..0001}}.tar", size=16, holdout=0)
    assert Shards(str(tmp_path), size=16).urls == data.urls
    data.build(tmp_path / "built")
    pairs = open_pairs(tmp_path / "built")
    assert list(pairs.captions) == [f"caption {row:09d}" for row in range(6)]
    found = origins(data, pairs.ids)
    assert found["key"] == [f"{row:09d}" for row in range(6)]
    assert found["uid"] == [f"{row % 3:032x}" for row in range(6)]
    assert found["url"][5] == "http://a.org/000000005.jpg"
    assert (found["width"], found["height"], set(found["sha256"])) == ([24] * 6, [16] * 6, {"0" * 64})
