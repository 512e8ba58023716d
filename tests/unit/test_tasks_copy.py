"""What is no sample stays in a copied shard byte for byte: links, folders, times, modes, pax and long names."""

import io
import tarfile

import pytest

from experiments.data.provenance import sample_members
from experiments.data.shard_copy import plan_copy

LONG = "folder/" + "x" * 150


def build(path, kind=tarfile.PAX_FORMAT):
    """Four samples among all else that a tar may hold."""
    with tarfile.open(path, "w", format=kind, pax_headers={"comment": "of the whole"}) as tar:

        def add(name, content=b"", **about):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode, info.uid, info.uname = len(content), 1234567.5, 0o640, 77, "ann"
            for key, value in about.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))

        add("README", b"about this shard")
        add("folder", type=tarfile.DIRTYPE, mode=0o750)
        for key in ("a", "b", LONG, "d"):
            add(f"{key}.jpg", key.encode() * 300, pax_headers={"source": key[-5:]})
            add(f"{key}.txt", b"caption of " + key.encode())
            add(f"to_{key[-1]}", type=tarfile.SYMTYPE, linkname=f"{key}.jpg")
        add("copy_of_README", type=tarfile.LNKTYPE, linkname="README")
        add(".hidden", b"\0" * 700)
        add("empty")
        add("fifo", type=tarfile.FIFOTYPE)
    return path


def members(path):
    """Everything that a tar says of each of its members, and their content."""
    with tarfile.open(path) as tar:
        return [
            (info.get_info(), info.type, info.pax_headers, tar.extractfile(info).read() if info.isfile() else None)
            for info in tar
        ]


def copy(source, target, kept):
    plan = plan_copy(source, kept)
    plan.write(source, target)
    assert target.stat().st_size == plan.size
    return plan


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_copy_of_all_samples_is_the_same_file(tmp_path, kind):
    old = build(tmp_path / "old.tar", kind)
    plan = copy(old, tmp_path / "new.tar", range(4))
    assert plan.samples == ["a", "b", LONG, "d"]
    assert (tmp_path / "new.tar").read_bytes() == old.read_bytes()


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("kept", [{0, 1, 3}, {2}, {1, 2}, set()])
def test_only_the_samples_and_the_links_to_them_go(tmp_path, kind, kept):
    old = build(tmp_path / "old.tar", kind)
    plan = copy(old, tmp_path / "new.tar", kept)
    keys = ["a", "b", LONG, "d"]
    gone = {f"{keys[i]}.{end}" for i in range(4) if i not in kept for end in ("jpg", "txt")}
    gone |= {f"to_{keys[i][-1]}" for i in range(4) if i not in kept}
    left = [member for member in members(old) if member[0]["name"] not in gone]
    assert members(tmp_path / "new.tar") == left
    assert plan.links == 4 - len(kept)
    raw = old.read_bytes()
    for entry in plan.entries:  # in whole blocks, in their order
        assert raw[entry.start : entry.end] in (tmp_path / "new.tar").read_bytes()
    assert [entry.start for entry in plan.entries] == sorted(entry.start for entry in plan.entries)


def test_what_lies_behind_the_end_mark_or_a_break_does_not_come_through(tmp_path):
    old = build(tmp_path / "old.tar")
    whole = old.read_bytes()
    joined = tmp_path / "joined.tar"
    hidden = build(tmp_path / "hidden.tar").read_bytes().replace(b"caption of", b"poison for")
    joined.write_bytes(whole + hidden)
    plan = plan_copy(joined, range(4))
    plan.write(joined, tmp_path / "new.tar")
    assert b"poison for" not in (tmp_path / "new.tar").read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[: whole.index(b"caption of d") + 5])
    plan_copy(cut, range(3)).write(cut, tmp_path / "new.tar")
    assert [info["name"] for info, *_ in members(tmp_path / "new.tar")][-2:] == [f"{LONG}.txt", "to_x"]


def test_two_samples_of_a_key_do_not_become_one(tmp_path):
    """Between them lay one that was removed. Readers know a new sample of a key by an ending that repeats."""
    names = ["a.jpg", "a.txt", "b.jpg", "b.txt", "a.jpg", "a.txt", "c.jpg", "a.json", "d.jpg"]
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    assert plan_copy(tmp_path / "old.tar", range(6)).samples == ["a", "b", "a", "c", "a", "d"]
    plan = copy(tmp_path / "old.tar", tmp_path / "new.tar", {0, 2, 4, 5})
    assert (plan.samples, plan.folded) == (["a", "a", "d"], [4])  # a.json would be read as the second a's
    written = [info["name"] for info, *_ in members(tmp_path / "new.tar")]
    assert written == ["a.jpg", "a.txt", "a.jpg", "a.txt", "d.jpg"]
    with open(tmp_path / "new.tar", "rb") as stream:
        assert [key for key, _ in sample_members(stream, plan.size)] == plan.samples


def test_a_link_of_a_removed_samples_name_goes_with_it(tmp_path):
    """Else its picture, which nobody has scored, would stand beside nothing but come through."""
    with tarfile.open(tmp_path / "old.tar", "w") as tar:
        for name in ("a.jpg", "a.txt", "b.txt"):
            tar.addfile(tarfile.TarInfo(name))
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../elsewhere.jpg"
        tar.addfile(link)
    copy(tmp_path / "old.tar", tmp_path / "new.tar", {0})
    assert [info["name"] for info, *_ in members(tmp_path / "new.tar")] == ["a.jpg", "a.txt"]
