"""What `data.shards` may name: globs, joined paths, links, hidden files; shards unreadable or changed since."""

import errno
import json
import os

import numpy as np
import pytest

import experiments.data.shard_urls as module
from experiments.data.pairs import open_pairs
from experiments.data.shapes.export import Export
from experiments.data.shard_pairs import ChangedShard, RangeReader, file_stamp
from experiments.data.shard_urls import expand
from experiments.data.shards import Shards


@pytest.fixture
def files(tmp_path):
    for name in ("00.tar", "01.tar", "02.tar", "._00.tar", ".hidden.tar", "00_stats.json", "a[1].tar", "b{x}.tar"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(urls):
    return [os.path.basename(url) for url in urls]


@pytest.fixture
def pairs(tmp_path):
    Export(tmp_path / "shards", pairs=40, shards=4, size=32).write()
    return tmp_path / "shards"


def test_globs_folders_and_joined_paths(files, monkeypatch):
    assert names(expand(str(files))) == ["00.tar", "01.tar", "02.tar", "a[1].tar", "b{x}.tar"]
    assert names(expand(f"{files}/*")) == names(expand(f"{files}/*.tar")) == names(expand(str(files)))
    assert (
        names(expand(f"{files}/0?.tar")) == names(expand(f"{files}/0[0-9].tar")) == ["00.tar", "01.tar", "02.tar"]
    )
    assert names(expand(f"{files}/0[!1].tar")) == ["00.tar", "02.tar"]
    assert names(expand(f"{files}/{{0,a}}*.tar")) == ["00.tar", "01.tar", "02.tar", "a[1].tar"]
    assert expand(f"{files}/02.tar::{files}/{{00..01}}.tar") == [
        f"{files}/{name}.tar" for name in ("02", "00", "01")
    ]
    assert len(expand(f"{files}::{files}/00.tar")) == 6
    assert expand("simplecache::s3://b/{0..1}.tar") == ["simplecache::s3://b/0.tar", "simplecache::s3://b/1.tar"]
    assert expand("https://host/a.tar?x=[1]*") == ["https://host/a.tar?x=[1]*"]
    monkeypatch.setenv("HOME", str(files))
    assert expand("~/0{0..1}.tar") == [f"{files}/00.tar", f"{files}/01.tar"]
    assert names(expand(f"file://{files}/0*.tar")) == ["00.tar", "01.tar", "02.tar"]


def test_a_path_that_exists_is_taken_as_it_is(files):
    strange = files / "a=b (1) [x] {0..3} ~::*"
    strange.mkdir()
    (strange / "0.tar").write_bytes(b"x")
    assert expand(str(strange)) == expand(f"{strange}/0.tar") == [f"{strange}/0.tar"]
    assert names(expand(f"{files}/a[1].tar")) == ["a[1].tar"]
    assert names(expand(f"{files}/b{{x}}.tar")) == ["b{x}.tar"]


def test_remote_globs():
    import fsspec

    memory = fsspec.filesystem("memory")
    for name in ("1.tar", "0.tar", "._0.tar", "0.json"):
        memory.pipe(f"/globs/{name}", b"x")
    assert expand("memory://globs/*") == ["memory:///globs/0.tar", "memory:///globs/1.tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("x/*.tar", "is a pattern that no file matches"),
        ("x/{0..9999999999}.tar", "names 10,000,000,000 shards, more than 1,000,000"),
        ("memory://nothing/*.tar", "is a pattern that no tar file matches"),
        ("nosuch://bucket/*.tar", "cannot be opened: Protocol not known: nosuch"),
    ],
)
def test_patterns_that_name_nothing_are_refused(pattern, message):
    with pytest.raises(ValueError, match=message) as refused:
        expand(pattern)
    assert "\n" not in str(refused.value)


def test_links_out_of_the_folder_are_followed_on_request(pairs, tmp_path):
    cache = tmp_path / "snapshots/main"
    cache.mkdir(parents=True)
    for file in sorted(pairs.glob("*.tar")):
        (cache / file.name).symlink_to(os.path.relpath(file, cache))
    for pattern in (cache, f"{cache}/*.tar", f"{tmp_path}/snapshots/*/00000.tar"):
        with pytest.raises(ValueError, match=r"00000.tar is a link out of the folder, to .*data.follow_links=true"):
            Shards(str(pattern), size=32)
        assert len(expand(str(pattern), follow_links=True)) in (1, 4)
    Shards(str(cache), size=32, holdout=0, follow_links=True).build(tmp_path / "built")
    assert len(open_pairs(tmp_path / "built")) == 40
    # A path that is named is the user's own choice, and so is a link within the folder.
    assert len(Shards(f"{cache}/{{00000..00003}}.tar", size=32).urls) == 4
    (pairs / "again.tar").symlink_to("00000.tar")
    assert len(expand(str(pairs))) == 5


def test_a_dangling_link_is_a_missing_shard(pairs, tmp_path):
    (pairs / "00001.tar").unlink()
    (pairs / "00001.tar").symlink_to("gone.tar")
    Shards(str(pairs), size=32, holdout=0, max_damaged=0.5).build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"] == {"missing shard": 10}


@pytest.mark.parametrize("fault", ["mode", "folder", "pipe"])
def test_an_unreadable_shard_is_counted_and_tried_again(pairs, tmp_path, monkeypatch, fault):
    target = pairs / "00002.tar"
    content = target.read_bytes()
    real = open

    def refusing(file, *args, **options):
        if str(file) == str(target):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(file, *args, **options)

    if fault == "mode":  # whoever runs the tests may be root, who can read everything
        monkeypatch.setattr("builtins.open", refusing)
    else:
        target.unlink()
        target.mkdir() if fault == "folder" else os.mkfifo(target)
    shards = Shards(str(pairs), size=32, holdout=0, max_damaged=0.5)
    before = shards.fingerprint()
    shards.build(tmp_path / "data/a")
    summary = json.loads((tmp_path / "data/a/damage.json").read_text())
    assert (summary["samples"], summary["damage"]) == (40, {"unreadable shard": 10})
    assert "about 10 samples" in (tmp_path / "data/a/damage.csv").read_text()
    monkeypatch.undo()
    if fault != "mode":
        target.rmdir() if fault == "folder" else target.unlink()
        target.write_bytes(content)
    assert shards.fingerprint() != before
    shards.build(tmp_path / "data/b")
    assert len(open_pairs(tmp_path / "data/b")) == 40


def test_an_error_of_the_disk_is_not_kept_in_the_index(pairs, tmp_path, monkeypatch):
    import experiments.data.shard_index as index_module

    real = index_module.open_shard

    def failing(url):
        if url.endswith("00001.tar"):
            raise OSError(errno.EIO, "Input/output error")
        return real(url)

    shards = Shards(str(pairs), size=32, holdout=0, max_damaged=0.5)
    monkeypatch.setattr(index_module, "open_shard", failing)
    shards.build(tmp_path / "data/a")
    assert len(open_pairs(tmp_path / "data/a")) == 30
    monkeypatch.undo()
    shards.build(tmp_path / "data/a")
    assert len(open_pairs(tmp_path / "data/a")) == 40


@pytest.mark.parametrize("change", ["time", "size", "content"])
def test_a_shard_that_changed_since_it_was_indexed_is_not_read(pairs, tmp_path, change):
    Shards(str(pairs), size=32, holdout=0).build(tmp_path / "built")
    found = open_pairs(tmp_path / "built")
    shard = pairs / "00001.tar"
    if change == "time":
        os.utime(shard, ns=(0, 0))
    elif change == "size":
        shard.write_bytes(shard.read_bytes() + bytes(10240))
    else:
        (pairs / "new").write_bytes((pairs / "00002.tar").read_bytes())
        (pairs / "new").replace(shard)
    assert found.images(np.arange(10)).shape == (10, 32, 32, 3)
    with pytest.raises(ChangedShard, match=r"00001.tar has changed since it was indexed"):
        found.images(np.arange(40))


def test_a_shard_that_changes_while_it_is_checked_stops_the_build(pairs, tmp_path, monkeypatch):
    """Its samples are not damaged, so they are not counted as such."""
    import experiments.data.shards as shards_module

    real, shard = shards_module.check_job, pairs / "00001.tar"

    def change(job):
        os.utime(shard, ns=(0, 0))
        return real(job)

    shards = Shards(str(pairs), size=32, holdout=0)
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "check_job", change)
        with pytest.raises(ChangedShard, match=r"00001.tar has changed since it was indexed; run again"):
            shards.build(tmp_path / "built")
    shards.build(tmp_path / "built")
    assert len(open_pairs(tmp_path / "built")) == 40


def test_an_error_of_the_disk_while_images_are_checked_is_damage(pairs, tmp_path, monkeypatch):
    real = os.pread

    def failing(descriptor, length, offset):
        if offset < 3000 and os.readlink(f"/proc/self/fd/{descriptor}").endswith(".tar"):
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    Shards(str(pairs), size=32, holdout=0, max_damaged=0.5).build(tmp_path / "built")
    damage = json.loads((tmp_path / "built/damage.json").read_text())["damage"]
    assert set(damage) == {"unreadable shard"}
    assert 4 <= damage["unreadable shard"] <= 8
    with pytest.raises(OSError, match=r"Input/output error: '.*00000.tar'"):
        RangeReader([str(pairs / "00000.tar")]).read(*np.array([[0], [0], [5]]))


def test_a_reader_without_stamps_reads_what_is_there(pairs):
    shard = str(pairs / "00000.tar")
    assert RangeReader([shard]).read(*np.array([[0], [0], [5]]))[0] == (pairs / "00000.tar").read_bytes()[:5]
    assert file_stamp(shard) == [os.stat(shard).st_size, os.stat(shard).st_mtime_ns]
    assert file_stamp(str(pairs / "none.tar")) == ["missing"]


def test_a_scheme_without_its_package_is_refused_at_once():
    with pytest.raises(
        ValueError, match=r"data.shards='nosuch://b/0.tar' cannot be opened: Protocol not known"
    ) as refused:
        Shards("nosuch://b/{0..3}.tar::nosuch://b/0.tar", size=32)
    assert "\n" not in str(refused.value)


def test_a_remote_store_that_cannot_be_reached_is_one_line(monkeypatch):
    class Broken:
        def info(self, path):
            raise RuntimeError("no credentials\n" * 100)

    monkeypatch.setattr(module, "file_system", lambda url: (Broken(), "b/x.tar"))
    with pytest.raises(
        ValueError, match=r"data.shards='s3://b/x.tar' cannot be reached: RuntimeError: no"
    ) as refused:
        Shards("s3://b/x.tar", size=32).fingerprint()
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 400
