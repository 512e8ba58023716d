"""The members of a plain tar in their order, with the place of each, as Python's `tarfile` reads them.

`tarfile` is what WebDataset trains by, so the same extension headers count here. It ends without a word at what it
cannot read; here a broken tar is an error that says where. Tars joined by `cat` are read through.

Formats: POSIX.1-2001 "pax interchange format" (ustar and extended headers), and GNU's long names and sparse files.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
RECORD = 10_240
"""A tar is filled up with zeros to a multiple of this, GNU tar's and Python's default; ..."""
RECORDS = tuple(1 << power for power in range(14, 21))
"""... or to a multiple of one of these (16 KiB to 1 MiB), if it was written with larger records (`tar -b`)."""
MAX_HEADER = 1 << 20
"""Bytes of an extension header; larger ones are not read."""
MAX_NAME = 4096
"""Characters of a member's name, as Linux bounds a path."""

_END = 2 * BLOCK
_CHUNK = 1 << 16
_LONG_NAME, _LONG_LINK, _GLOBAL = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_PROBLEMS = {
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "device",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
    tarfile.DIRTYPE,
)
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"(\xb5/\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_FOREIGN = {
    b"PK\x03\x04": "a zip file",
    b"version https://git-lfs": "a pointer of Git LFS, whose file was not fetched",
    b"<": "a web page",
}


@dataclass(frozen=True)
class Member:
    """A file of a tar, or a link or device in the place of one.

    offset, size: of its content, in bytes.  start, end: of all that belongs to it, headers and padding too.
    problem: kind of damage and its detail, for what cannot be used as a file.
    """

    name: str
    offset: int
    size: int
    start: int = 0
    end: int = 0
    problem: tuple[str, str] | None = None


class BrokenTar(Exception):
    """The tar cannot be read on from `offset`.

    kind: of damage.  cut: whether the file ends there, so that what is missing is not known from its length.
    """

    def __init__(self, reason: str, offset: int, kind: str = "broken tar", cut: bool = False) -> None:
        super().__init__(reason, offset)
        self.reason, self.offset, self.kind, self.cut = reason, offset, kind, cut


def read_members(stream: BinaryIO, length: int) -> Iterator[Member]:
    """The members of a tar of `length` bytes, but for folders; raises BrokenTar."""
    archive = start = offset = 0  # where this archive, this member and this header begin
    extension, last = _Extension(), None
    while offset < length:
        header = _read(stream, offset, BLOCK)
        if not any(header) and start == offset:
            following = _behind_end_mark(stream, offset, length, archive, last)
            if following is None:
                return
            archive = start = offset = following
            continue
        info = _parse(header, offset)
        content = offset + BLOCK
        if info.type in (_LONG_NAME, _LONG_LINK, _GLOBAL, *_EXTENDED):
            if content + info.size > length:
                raise BrokenTar("ends within an extension header", start, cut=True)
            extension.add(info.type, info.size, stream, content)
            offset = content + _padded(info.size)
            continue
        if info.type == tarfile.GNUTYPE_SPARSE:
            content = _behind_sparse_map(stream, header, content)
        name, size, problem = extension.apply(info)
        stored = 0 if info.type in _WITHOUT_DATA else size
        if content + stored > length:
            raise BrokenTar(f"ends within {name[:100]!a}", start, cut=True)
        offset = content + _padded(stored)
        if info.type != tarfile.DIRTYPE:
            last = Member(name, content, stored, start, offset, problem)
            yield last
        start, extension = offset, _Extension()
    if length:
        raise BrokenTar("ends without an end mark", length, cut=True)


@dataclass
class _Extension:
    """What the headers before a member's own say of it; of several, the first counts, as in `tarfile`."""

    name: str | None = None
    size: int | None = None
    problem: tuple[str, str] | None = None

    def add(self, kind: bytes, size: int, stream: BinaryIO, offset: int) -> None:
        """Take up the extension header whose content lies at `offset`."""
        if kind == _LONG_LINK:
            return
        if size > MAX_HEADER:
            detail = f"extension header of {size:,} bytes, more than {MAX_HEADER:,}"
            self._broken(detail, kind, offset)
            return
        content = _read(stream, offset, _padded(size))  # with its padding, as `tarfile` takes it
        if kind == _LONG_NAME:
            self._name(content.partition(b"\0")[0])
            return
        try:
            records = _pax_records(content)
        except ValueError as error:
            self._broken(f"extension header: {error}", kind, offset)
            return
        sparse = any(key.startswith(b"GNU.sparse.") for key in records)
        if kind == _GLOBAL:
            if sparse or b"path" in records or b"size" in records:
                raise BrokenTar("a global header gives one name or size to all files", offset - BLOCK)
            return
        if sparse:
            self.problem = self.problem or ("sparse file", "")
        if (name := records.get(b"GNU.sparse.name", records.get(b"path"))) is not None:
            self._name(name.rstrip(b"/"))
        if (digits := records.get(b"size")) is not None and self.size is None:
            if digits.isdigit() and len(digits) < 19:
                self.size = int(digits)
            else:
                self._broken("extension header: a size that is no number", kind, offset)

    def _broken(self, detail: str, kind: bytes, offset: int) -> None:
        if kind == _GLOBAL:
            raise BrokenTar(f"broken global header: {detail}", offset - BLOCK)
        self.problem = self.problem or ("broken header", detail)

    def _name(self, name: bytes) -> None:
        if self.name is None:
            self.name = name.decode("utf-8", "surrogateescape")

    def apply(self, info: tarfile.TarInfo) -> tuple[str, int, tuple[str, str] | None]:
        """Name, size and problem of the member whose own header is `info`."""
        name = info.name if self.name is None else self.name
        problem = self.problem
        if info.type in _PROBLEMS or not (info.isreg() or info.isdir()):
            kind = _PROBLEMS.get(info.type, "unknown type")
            problem = problem or (kind, f"to {info.linkname[:100]!a}" if info.islnk() or info.issym() else "")
        if len(name) > MAX_NAME:
            problem = problem or ("broken name", f"{len(name):,} characters")
        elif not name or "\0" in name:
            problem = problem or ("broken name", "empty, or with a zero byte")
        elif not _is_unicode(name):
            problem = problem or ("broken name", "not in UTF-8")
        return (name or info.name)[-MAX_NAME:], info.size if self.size is None else self.size, problem


def _parse(header: bytes, offset: int) -> tarfile.TarInfo:
    if len(header) < BLOCK:
        raise BrokenTar("ends within a header", offset, cut=True)
    try:
        info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if offset == 0:
            for magic, what in _MAGIC.items():
                if header.startswith(magic):
                    reason = f"compressed by {what}; random access needs plain tar files"
                    raise BrokenTar(reason, 0, "compressed tar", cut=True) from None
            for magic, what in _FOREIGN.items():
                if header.lstrip().startswith(magic):
                    raise BrokenTar(f"no tar, but {what}", 0, cut=True) from None
        raise BrokenTar(f"broken header: {error}", offset) from None
    if info.size < 0:
        raise BrokenTar("broken header: negative size", offset)
    return info


def _behind_end_mark(stream: BinaryIO, offset: int, length: int, archive: int, last: Member | None) -> int | None:
    """Where the next of joined tars begins, None at the end of the file.

    offset: of the first zero block.  archive: where this tar began.  last: its last member.
    Raises BrokenTar if there are other bytes, or more or fewer zeros than the end of a tar has.
    """
    place, found = offset, b""
    while place < length and place - offset < RECORDS[-1] + _END:
        chunk = _read(stream, place, min(_CHUNK, length - place))
        found = chunk.lstrip(b"\0")
        place += len(chunk) - len(found)
        if found or not chunk:
            break
    zeros = place - offset
    if found:
        if zeros % BLOCK:
            raise BrokenTar("other bytes behind the end mark", place)
        try:
            _parse(_read(stream, place, BLOCK), place)
        except BrokenTar:
            raise BrokenTar("other bytes behind the end mark", place) from None
    if zeros < _END:
        raise BrokenTar(f"{zeros:,} zero bytes, but an end mark has {_END:,}", offset)
    if zeros >= RECORD + _END:
        filled = any((place - archive) % record == 0 and zeros < record + _END for record in RECORDS)
        if not filled or (last is not None and last.size and not any(_tail(stream, last))):
            raise BrokenTar(f"{zeros:,} zero bytes and more in the place of files", offset)
    return place if found else None


def _tail(stream: BinaryIO, member: Member) -> bytes:
    """A member's last bytes: all zero where a download into a file of full length broke off within it."""
    count = min(member.size, 16)
    return _read(stream, member.offset + member.size - count, count)


def _behind_sparse_map(stream: BinaryIO, header: bytes, offset: int) -> int:
    """The end of the blocks that go on with the map of a sparse file in GNU's old format."""
    more = bool(header[482])
    while more:
        block = _read(stream, offset, BLOCK)
        if len(block) < BLOCK:
            raise BrokenTar("ends within the map of a sparse file", offset, cut=True)
        more, offset = bool(block[504]), offset + BLOCK
    return offset


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """The "length key=value" lines of an extended header; a ValueError says what is wrong with one."""
    records: dict[bytes, bytes] = {}
    place = 0
    while place < len(content) and content[place]:
        space = content.find(b" ", place, place + 9)
        digits = content[place : max(space, place)]
        if not digits.isdigit():
            raise ValueError("a record without its length")
        following = place + int(digits)
        key, sign, value = content[space + 1 : following].partition(b"=")
        if following > len(content) or not key or not sign or not value.endswith(b"\n"):
            raise ValueError("a record of the wrong length")
        records[key] = value[:-1]
        place = following
    return records


def _read(stream: BinaryIO, offset: int, count: int) -> bytes:
    try:
        stream.seek(offset)
        return stream.read(count)
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise BrokenTar(reason, offset, "unreadable shard", cut=True) from None


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
