"""Tars as they come: cut, zeroed, joined, hostile, seeded damage; members as Python's `tarfile` has them."""

import io
import random
import tarfile

import pytest

from experiments.data.image_decoding import Limits
from experiments.data.tar_index import Fields, index_shard, read_samples
from experiments.data.tar_members import BrokenTar, read_members

ZEROS = bytes(1 << 20)


def make_tar(files, **options):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", **options) as tar:
        for name, content in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def pairs_tar(begin=0, end=40, size=1300, **options):
    rows = range(begin, end)
    return make_tar([(f"{i:03d}.{e}", b"x" * size) for i in rows for e in ("jpg", "txt")], **options)


def index_of(content, fields=None):
    return index_shard(io.BytesIO(content), len(content), "x.tar", fields or Fields(), Limits())


def header(name=b"1.jpg", size=b"00000000012", kind=b"0", **fields):
    """A ustar header block; size as its field's bytes."""
    block = bytearray(512)
    block[: len(name)], block[100:108], block[124 : 124 + len(size)] = name, b"0000644\0", size
    block[156:157], block[257:265] = kind, b"ustar\x0000"
    for place, content in fields.get("more", {}).items():
        block[place : place + len(content)] = content
    block[148:156] = b"%06o\0 " % (256 + sum(block[:148]) + sum(block[156:]))
    return bytes(block)


def padded(content):
    return content + bytes(-len(content) % 512)


def pax(records, kind=b"x"):
    return header(b"pax", b"%011o" % len(records), kind) + padded(records)


SOUND = pairs_tar()
END = SOUND.rstrip(b"\0")
END = len(END) + -len(END) % 512


def test_sound_tars_of_every_record_size_are_sound():
    for blocking in (1, 2, 20, 32, 64, 128, 256, 512, 1024, 2048):
        record = 512 * blocking
        content = SOUND[:END] + bytes(1024)
        index = index_of(content + bytes(-len(content) % record))
        assert (index.samples, index.issues) == (40, []), blocking


@pytest.mark.parametrize(
    ("content", "read", "lost"),
    [
        (SOUND[: len(SOUND) // 2] + bytes(len(SOUND) - len(SOUND) // 2), 21, 20),  # broken off, at full length
        (SOUND[:END] + bytes(512), 40, 1),
        (SOUND[:END] + bytes(600), 40, 1),
        (SOUND[:END] + bytes(1024 + 20 * 512), 40, 3),
        (SOUND[:END] + bytes(3 << 20), 40, 700),
        (SOUND[:END] + bytes(1024) + b"trailing bytes" * 5000, 40, 17),
        (SOUND[:END] + bytes(1500) + SOUND, 40, 41),  # joined, but not where a block begins
        (SOUND[:END] + bytes(512) + SOUND, 40, 41),
        (SOUND[:END] + bytes(1 << 21) + SOUND, 40, 550),
    ],
)
def test_what_is_behind_the_end_of_the_files_is_broken_with_what_is_lost(content, read, lost):
    index = index_of(content)
    issue = index.issues[-1]
    assert (issue.kind, issue.id, issue.note) == ("broken tar", -1, False)
    assert read - 1 <= len(index.positions) <= read
    assert 0.7 * lost <= sum(f.samples for f in index.issues) <= 1.3 * lost
    assert "bytes are lost" in issue.detail
    assert not index.cut


def test_a_hole_of_whole_records_is_no_end():
    """Half of a file whose length is a multiple of 64 KiB, broken off within a member."""
    content = pairs_tar(0, 200)
    content += bytes(-len(content) % 65536)
    half = len(content) - 65536 + 1024
    index = index_of(content[:half] + bytes(len(content) - half))
    assert [issue.kind for issue in index.issues if issue.id < 0] == ["broken tar"]


def test_joined_tars_are_read_through():
    joined = SOUND + pairs_tar(40, 60) + pairs_tar(60, 61, format=tarfile.PAX_FORMAT)
    index = index_of(joined)
    assert (index.positions, index.issues) == (list(range(61)), [])
    assert {joined[o : o + n] for o, n in zip(index.offsets, index.lengths, strict=True)} == {b"x" * 1300}
    assert index_of(joined[:-20000]).issues[-1].kind == "broken tar"


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"\xfd7zXZ\0", "compressed by xz"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"PK\x03\x04", "a zip file"),
    ],
)
def test_what_is_no_tar_is_named(begin, reason):
    (issue,) = index_of(begin + b"\x01" * 2000).issues
    assert reason in issue.detail


LONG = b"6" * 6000


@pytest.mark.parametrize(
    ("before", "kind"),
    [
        (pax(LONG + b" path=1.jpg\n"), "broken header"),
        (pax(b"16 size=" + b"1" * 6 + b"\n"), "broken header"),  # longer than it says
        (pax(b"9999 path=1.jpg\n"), "broken header"),
        (pax(b"0 path=1.jpg\n"), "broken header"),
        (pax(b"13 size=many\n"), "broken header"),
        (pax(b"6 a=b\n" * 400_000), "broken header"),  # 2.4 MB
        (pax(b"14 path=1.jp\xff\n"), "broken name"),
        (pax(b"7 path=\n"), "broken header"),
        (pax(b"8 path=\n"), "broken name"),
        (pax(b"15 path=1.j\0pg\n"), "broken name"),
        (header(b"long", b"%011o" % 3_000_000, b"L") + bytes(3_000_320), "broken header"),
        (header(b"long", b"%011o" % 9005, b"L") + padded(b"a/" * 4500 + b"1.jpg"), "broken name"),
        (pax(b"22 GNU.sparse.major=1\n"), "sparse file"),
        (b"", "hard link"),
        (b"", "symbolic link"),
        (b"", "device"),
        (b"", "unknown type"),
        (b"", "sparse file"),
        (b"", "broken name"),
    ],
)
def test_a_hostile_member_is_damage_of_its_sample_alone(before, kind):
    kinds = {"hard link": b"1", "symbolic link": b"2", "device": b"3", "unknown type": b"%", "sparse file": b"S"}
    name = b"1.j\xffpg" if kind == "broken name" and not before else b"1.jpg"
    begin = header(b"0.jpg") + padded(b"x" * 10) + header(b"0.txt") + padded(b"the first.")
    sort = b"0" if before or kind == "broken name" else kinds[kind]
    own = header(name, b"0" * 11) if sort in b"123" else header(name) + padded(b"y" * 10)
    own = header(name, own[124:135], sort) + own[512:]
    after = header(b"2.jpg") + padded(b"z" * 10) + header(b"2.txt") + padded(b"the third.")
    index = index_of(begin + before + own + header(b"1.txt") + padded(b"the second") + after + bytes(1024))
    assert index.captions[0] == "the first."
    assert index.captions[-1] == "the third."
    damage = [issue.kind for issue in index.issues if not issue.note]
    assert kind in damage
    assert "broken tar" not in damage
    assert len(index.positions) + len(damage) == index.samples
    assert all(len(issue.detail) < 300 and len(issue.source) < 300 for issue in index.issues)


def test_extended_headers_cost_linear_time():
    """A megabyte of records in one header: each is looked at once."""
    content = pax(b"6 a=b\n" * 170_000) + header() + padded(b"x" * 10) + bytes(1024)
    (member,) = read_members(io.BytesIO(content), len(content))
    assert (member.name, member.problem) == ("1.jpg", None)


def test_a_size_in_an_extended_header_counts_as_in_tarfile():
    content = pax(b"9 size=3\n") + header(size=b"00000000000") + padded(b"abc")
    content += header(b"2.jpg") + padded(b"x" * 10) + bytes(1024)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        theirs = [(member.name, member.offset_data, member.size) for member in tar]
    ours = [(member.name, member.offset, member.size) for member in read_members(io.BytesIO(content), len(content))]
    assert ours == theirs == [("1.jpg", 1536, 3), ("2.jpg", 2560, 10)]


@pytest.mark.parametrize("records", [b"14 path=x.jpg\n", b"9 size=0\n", b"15 size=9\n", LONG])
def test_a_global_header_for_all_files_is_broken(records):
    content = pax(records, b"g") + header() + padded(b"x" * 10) + bytes(1024)
    assert [issue.kind for issue in index_of(content).issues] == ["broken tar"]


def test_a_global_comment_is_passed_over():
    content = pax(b"13 comment=a\n", b"g") + SOUND
    assert len(index_of(content).positions) == 40


def test_an_error_of_the_disk_is_damage_with_what_was_read_before():
    class Failing(io.BytesIO):
        def read(self, count=-1):
            if self.tell() > len(SOUND) // 2:
                raise OSError(5, "Input/output error")
            return super().read(count)

    index = index_shard(Failing(SOUND), len(SOUND), "x.tar", Fields(), Limits())
    assert 19 <= len(index.positions) <= 21
    assert index.cut
    assert (index.issues[-1].kind, "Input/output error" in index.issues[-1].detail) == (
        "unreadable shard",
        True,
    )
    assert 18 <= sum(issue.samples for issue in index.issues) <= 24


def damaged_tar(seed):
    """A small tar of any format with up to five seeded faults, most of them in headers with a valid checksum."""
    rng = random.Random(seed)
    content = bytearray(512)
    kind = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    folder = "" if kind == tarfile.USTAR_FORMAT else "d" * rng.choice([0, 3, 120, 300])
    files = []
    for i in range(rng.randrange(1, 6)):
        for ending in ("jpg", "txt"):
            info = tarfile.TarInfo(f"{folder and folder + '/'}{i}.{ending}")
            if rng.random() < 0.1:
                info.type, info.linkname = rng.choice([tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE]), "x"
            files.append((info, b"" if info.type != tarfile.REGTYPE else rng.randbytes(rng.randrange(1500))))
    content = bytearray(make_tar(files, format=kind))
    for _ in range(rng.randrange(6)):
        place, fault = rng.randrange(len(content)), rng.randrange(6)
        block = place // 512 * 512
        if fault == 0:
            content[place] = rng.randrange(256)
        elif fault == 1 and len(content) > 2000:
            del content[place : place + rng.randrange(1, 600)]
        elif fault == 2:
            content[block : block + 512] = bytes(512)
        elif block + 512 <= len(content):
            at = rng.choice([rng.randrange(100), rng.randrange(124, 136), 156, rng.randrange(345, 500)])
            content[block + at] = rng.choice([0, 48, 55, 120, 103, 76, 128, 255, rng.randrange(256)])
            one = content[block : block + 512]
            content[block + 148 : block + 156] = b"%06o\0 " % (256 + sum(one[:148]) + sum(one[156:]))
    return bytes(content)


@pytest.mark.parametrize("seed", range(300))
def test_damaged_tars_are_read_as_tarfile_reads_them(seed):
    """Every file that `tarfile` (so WebDataset) finds is found, as the same bytes, or lies behind a named break."""
    content = damaged_tar(seed)
    index_of(content)  # never raises
    ours, broken = {}, len(content) + 1
    try:
        for member in read_members(io.BytesIO(content), len(content)):
            assert 0 <= member.start < member.offset <= member.offset + member.size <= len(content)
            ours[member.offset] = member
    except BrokenTar as error:
        broken = error.offset
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            theirs = [member for member in tar if member.isreg() and not member.issparse()]
    except (tarfile.TarError, ValueError):
        return
    for member in theirs:
        own = ours.get(member.offset_data)
        assert own is not None or member.offset_data >= broken
        assert own is None or own.problem or (own.name, own.size) == (member.name, member.size)


@pytest.mark.parametrize("seed", range(0, 300, 7))
def test_positions_of_the_index_are_those_of_the_samples(seed):
    content = damaged_tar(seed)
    samples = []
    try:
        for sample in read_samples(io.BytesIO(content), len(content)):
            samples.append(sample)
    except BrokenTar:
        pass
    index = index_of(content)
    damaged = {issue.id for issue in index.issues if issue.id >= 0 and not issue.note}
    assert len(samples) == index.samples
    assert sorted([*index.positions, *damaged]) == list(range(index.samples))
    for position, offset in zip(index.positions, index.offsets, strict=True):
        assert offset in [member.offset for member in samples[position].members]
