"""Reads the structure of a plain tar of samples: where each image lies, and its caption.

A shard holds files named `<key>.<ending>` in WebDataset's manner; consecutive files of one key make a sample.
Reading goes on to the first broken header; what lies behind it is estimated and counted as lost.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from experiments.data.damage import Issue
from experiments.data.image_decoding import Limits

_BLOCK = 512
_LONG_NAME, _PAX, _PAX_GLOBAL, _LONG_LINK = b"L", b"x", b"g", b"K"


@dataclass(frozen=True)
class Fields:
    """Which endings hold the image and the caption, in order of preference."""

    image_keys: Sequence[str] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
    caption_keys: Sequence[str] = ("txt", "caption", "json")
    json_key: str = "caption"


@dataclass(frozen=True)
class Member:
    name: str
    offset: int
    size: int


@dataclass
class ShardIndex:
    """The sound samples of a shard (parallel lists), and the issues; their ids are positions in the shard."""

    positions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    samples: int = 0


class BrokenTar(Exception):
    """The tar cannot be read on from `offset`."""

    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason, offset)
        self.reason, self.offset = reason, offset


def read_members(stream: BinaryIO, length: int) -> Iterator[Member]:
    """The regular files of a tar of `length` bytes; raises BrokenTar."""
    offset, long_name = 0, None
    while offset < length:
        stream.seek(offset)
        header = stream.read(_BLOCK)
        if len(header) < _BLOCK:
            raise BrokenTar("ends within a header", offset)
        if not any(header):
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if offset == 0 and header[:2] in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5"):
                raise BrokenTar("compressed; random access needs plain tar files", 0) from None
            raise BrokenTar(f"broken header: {error}", offset) from None
        begin = offset + _BLOCK
        if info.size < 0 or begin + info.size > length:
            raise BrokenTar(f"ends within {info.name}", offset)
        if info.type in (_LONG_NAME, _PAX):
            stream.seek(begin)
            content = stream.read(info.size)
            long_name = _pax_path(content) if info.type == _PAX else _text(content.rstrip(b"\0"))
        elif info.type not in (_PAX_GLOBAL, _LONG_LINK):
            if info.isreg():
                yield Member(long_name or info.name, begin, info.size)
            long_name = None
        offset = begin + -(-info.size // _BLOCK) * _BLOCK
    if length:
        raise BrokenTar("ends without an end mark", length)


def index_shard(stream: BinaryIO, length: int, name: str, fields: Fields, limits: Limits) -> ShardIndex:
    """Index one shard; nothing is decoded, and of the images only the place is read."""
    index = ShardIndex()
    seen: set[str] = set()
    key, group = None, []  # type: str | None, list[tuple[str, Member]]

    def close(cut: bool = False) -> None:
        if key is None:
            return
        position, index.samples = index.samples, index.samples + 1
        source = f"{name}:{key}"
        if key in seen:
            index.issues.append(Issue(position, source, "duplicate key", "the first of the name is used"))
            return
        seen.add(key)
        try:
            image, caption, notes = _sample(stream, group, fields, limits)
        except _Unusable as reason:
            if cut:  # its other files may lie behind the break
                index.samples -= 1
                return
            index.issues.append(Issue(position, source, *reason.args))
            return
        index.positions.append(position)
        index.offsets.append(image.offset)
        index.lengths.append(image.size)
        index.captions.append(caption)
        index.issues += [Issue(position, source, note, note=True) for note in notes]

    end = 0
    try:
        for member in read_members(stream, length):
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            if not stem or not ending:  # a hidden file, or one without an ending, belongs to no sample
                continue
            member_key = f"{folder}/{stem}" if folder else stem
            if member_key != key:
                close()
                key, group = member_key, []
            group.append((ending.lower(), member))
            end = member.offset + member.size
        close()
    except BrokenTar as broken:
        close(cut=True)
        kind = "compressed tar" if "compressed" in broken.reason else "broken tar"
        lost = round((length - broken.offset) * index.samples / end) if end else 0
        detail = f"{broken.reason}, at byte {broken.offset:,} of {length:,}"
        index.issues.append(Issue(-1, name, kind, detail, samples=max(lost, 1) if index.samples else 0))
    if not index.samples and not index.issues:
        index.issues.append(Issue(-1, name, "empty shard", f"{length:,} bytes hold no sample", samples=0))
    return index


class _Unusable(Exception):
    """args: kind and detail of what a sample lacks."""


def _sample(
    stream: BinaryIO, group: list[tuple[str, Member]], fields: Fields, limits: Limits
) -> tuple[Member, str, list[str]]:
    by_ending: dict[str, Member] = {}
    notes = []
    for ending, member in group:
        if ending in by_ending:
            notes.append("repeated ending, first taken")
        by_ending.setdefault(ending, member)
    image = next((by_ending[key] for key in fields.image_keys if key in by_ending), None)
    if image is None:
        raise _Unusable("missing image", "has " + ", ".join(by_ending))
    if image.size == 0:
        raise _Unusable("empty file")
    if image.size > limits.max_bytes:
        raise _Unusable("too large", f"{image.size:,} bytes, more than {limits.max_bytes:,}")
    problem = ("missing caption", "has " + ", ".join(by_ending))
    for key in fields.caption_keys:
        if key not in by_ending:
            continue
        member = by_ending[key]
        stream.seek(member.offset)
        content = stream.read(member.size)
        if key == "json":
            try:
                value: Any = json.loads(content).get(fields.json_key)
            except (ValueError, AttributeError) as error:
                problem = ("broken caption", f"{type(error).__name__}: {error}")
                continue
            text = "" if value is None else str(value)
        else:
            text = _text(content)
        text = " ".join(text.split())
        if text:
            if "\ufffd" in text:
                notes.append("caption not in UTF-8")
            return image, text, notes
        problem = ("missing caption", "it is empty")
    raise _Unusable(*problem)


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


def _pax_path(content: bytes) -> str | None:
    """The path out of a pax header's "length key=value" records."""
    while content:
        length, _, rest = content.partition(b" ")
        if not length.isdigit() or int(length) <= len(length):
            return None
        key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
        if key == b"path":
            return _text(value)
        content = content[int(length) :]
    return None
