"""Copies a tar shard without some of its samples; all other bytes, headers too, stay in their order.

What is copied is whole entries: a file's header blocks (pax and long-name headers among them) with its content. So
times, modes, owners and everything else a header says stay as they were, and so do folders, links and files that
belong to no sample.

What is not kept: entries behind the first break of a broken tar; a link whose own name or target is of a removed
sample; a sample's file that the index does not have; end marks between joined tars, behind which some readers would
not look; bytes behind the end mark, which is written anew, padded to 10,240 bytes as tar does.
"""

from __future__ import annotations

import io
import itertools
import os
import tarfile
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from experiments.data.provenance import numbered_members, sample_key
from experiments.data.tar_index import split_name
from experiments.data.tar_members import Member

_BLOCK, _RECORD, _CHUNK = 512, 10_240, 1 << 24
_MOST_HEADERS = 1 << 20  # bytes of one entry's headers that are looked into
_EXTENDING = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_EMPTY = (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_OTHER, _UNREAD = -1, -2  # in place of a position: no sample's file; a sample's that the index does not have
_NONE: tuple[int, str, Member | None] = (_OTHER, "", None)


@dataclass(frozen=True)
class Entry:
    """Bytes start..end of a tar: one file, folder, link or global header, with all of its header blocks.

    position: of the sample it belongs to; -1: none; -2: one that the index does not have.
    key, ending: of that sample, and of the file's name.  content: where the file's content begins.
    links: keys of the samples that the name and the target of a link are of.
    """

    start: int
    end: int
    position: int = _OTHER
    key: str = ""
    ending: str = ""
    content: int = 0
    links: tuple[str, ...] = ()


@dataclass(frozen=True)
class Copy:
    """What is written of a shard.

    entries: in order.  samples: their keys.  folded: positions left out, since the sample written before them has
    the same key and other endings, so that readers would take the two for one.  links: how many go with the samples
    that they name.  unseen: how many images of the samples written are left out, since they were not looked at.
    """

    entries: list[Entry]
    samples: list[str]
    folded: list[int]
    links: int
    unseen: int = 0

    @property
    def size(self) -> int:
        """Bytes of the new shard."""
        content = sum(entry.end - entry.start for entry in self.entries) + 2 * _BLOCK
        return content + -content % _RECORD

    def write(self, source: Path, target: Path) -> None:
        """Write `target`; it is on the disk when this returns."""
        with open(source, "rb") as stream, open(target, "wb") as out:
            for entry in self.entries:
                _copy_bytes(stream, out, entry.start, entry.end)
            out.write(bytes(self.size - out.tell()))
            out.flush()
            os.fsync(out.fileno())

    def is_in(self, source: Path, target: Path) -> bool:
        """Whether `target` holds, byte for byte, what `write` would write."""
        if target.stat().st_size != self.size:
            return False
        with open(source, "rb") as stream, open(target, "rb") as there:
            for entry in self.entries:
                stream.seek(entry.start)
                for start in range(entry.start, entry.end, _CHUNK):
                    length = min(_CHUNK, entry.end - start)
                    if stream.read(length) != there.read(length):
                        return False
            return not any(there.read())


def plan_copy(
    source: Path, kept: Container[int], image_keys: Container[str] = (), seen: Container[int] = ()
) -> Copy:
    """A copy of `source` without the samples whose positions are not `kept`.

    image_keys: endings of images; those that begin at none of the offsets `seen` are left out. Trainers may take
    another of a sample's images than the one that was scored.
    """
    with open(source, "rb") as stream:
        everything = list(entries(stream, os.fstat(stream.fileno()).st_size))
    listed = [
        entry
        for entry in everything
        if entry.position not in kept or entry.ending.rpartition(".")[2] not in image_keys or entry.content in seen
    ]
    samples, folded = _choose(listed, kept)
    written = {position for position, _ in samples}
    gone = {""} | {entry.key for entry in listed if entry.position >= 0 and entry.position not in written}
    gone |= {key for entry in listed if entry.position == _UNREAD for key in entry.links}
    copied = [entry for entry in listed if entry.position == _OTHER or entry.position in written]
    left = [entry for entry in copied if not gone.intersection(entry.links)]
    unseen = len(everything) - len(listed)
    return Copy(left, [key for _, key in samples], folded, len(copied) - len(left), unseen)


def _choose(listed: list[Entry], kept: Container[int]) -> tuple[list[tuple[int, str]], list[int]]:
    """(position, key) of the samples to write, and the positions that would fold into the one before."""
    samples: list[tuple[int, str]] = []
    folded: list[int] = []
    files = (entry for entry in listed if entry.position >= 0 and entry.position in kept)
    endings: set[str] = set()  # of the sample written last
    for position, group in itertools.groupby(files, key=lambda entry: entry.position):
        of_sample = list(group)
        key, first = of_sample[0].key, of_sample[0].ending
        if samples and samples[-1][1] == key and first not in endings:
            folded.append(position)
            continue
        samples.append((position, key))
        endings = {entry.ending for entry in of_sample}
    return samples, folded


def entries(stream: BinaryIO, length: int) -> Iterator[Entry]:
    """All entries of a tar of `length` bytes, in order, up to where it ends or breaks.

    Which files there are, and to which samples they belong, is what the index of the shard says. Raises
    RuntimeError if one of those files has no header here.
    """
    members = numbered_members(stream, length)
    position, key, member = next(members, _NONE)
    start = at = 0
    while (found := _header(stream, at, length)) is not None:
        info, first, at = found  # the headers' first possible end, and their end
        if info is None:  # a block of zeros: an end mark
            if member is None:
                break
            start = at
        elif member is not None and first <= member.offset <= at:
            links = _names(stream, start, at) if info.type in _LINKS else ()
            ending = (split_name(member.name) or ("", ""))[1]
            at = max(at, member.offset) + _padded(member.size)
            yield Entry(start, min(at, length), position, key, ending, member.offset, links)
            position, key, member = next(members, _NONE)
            start = at
        elif info.type in _EXTENDING:
            at += _padded(info.size)
        else:
            names = _names(stream, start, at) if info.isreg() or info.type in _LINKS else ()
            if info.type not in _LINKS + _EMPTY:  # of folders, links and devices, a size says nothing
                at += _padded(info.size)
            if at > length:
                break
            yield Entry(start, at, _UNREAD if info.isreg() and names != () else _OTHER, links=names)
            start = at
    if member is not None:
        raise RuntimeError(f"{getattr(stream, 'name', 'a shard')}: {member.name} has no header of its own")


def _header(stream: BinaryIO, at: int, length: int) -> tuple[tarfile.TarInfo | None, int, int] | None:
    """The header at `at`, None for zeros; where its block ends, and where it ends: a sparse file's may have more
    blocks. None where there is no header.
    """
    stream.seek(at)
    block = stream.read(_BLOCK)
    if at + _BLOCK > length:
        return None
    first = at = at + _BLOCK
    if not any(block):
        return None, first, at
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return None
    more = info.type == tarfile.GNUTYPE_SPARSE and bool(block[482])
    while more and at + _BLOCK <= length:
        extension = stream.read(_BLOCK)
        at += _BLOCK
        more = bool(extension[504])
    return (info, first, at) if info.size >= 0 else None


def _names(stream: BinaryIO, start: int, end: int) -> tuple[str, ...]:
    """Keys of the samples that a file's own name and, of a link, its target are of; of an unreadable one: ("",)."""
    stream.seek(start)
    raw = stream.read(min(end - start, _MOST_HEADERS))
    try:
        with tarfile.open(fileobj=io.BytesIO(raw + bytes(2 * _BLOCK)), mode="r:") as tar:
            info = tar.next()
    except (tarfile.TarError, ValueError, OverflowError):
        info = None
    if info is None:
        return ("",)
    names = {info.name}
    if info.type in _LINKS:  # a symbolic link's target is relative to its folder
        names |= {info.linkname, os.path.normpath(os.path.join(info.name.rpartition("/")[0], info.linkname))}
    return tuple(sorted(key for key in map(sample_key, names) if key is not None))


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _copy_bytes(stream: BinaryIO, out: BinaryIO, start: int, end: int) -> None:
    stream.seek(start)
    left = end - start
    while left:
        block = stream.read(min(left, _CHUNK))
        if not block:
            raise OSError(f"{getattr(stream, 'name', 'a shard')} has become shorter while it was copied")
        out.write(block)
        left -= len(block)
