"""The samples of a plain tar: which files belong together, where each image lies, and its caption.

A shard holds files named `<key>.<ending>` in WebDataset's manner; consecutive files of one key make a sample. As in
open_clip, an ending that repeats begins another sample of that key. `number_members` is the one place that says
which sample a file is of; the ids that samples have and the samples that are removed go by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from experiments.data.caption_values import clean_caption, json_value
from experiments.data.damage import DecodeError, Issue
from experiments.data.image_decoding import Limits
from experiments.data.tar_members import BrokenTar, Member, read_members

MAX_CAPTION_BYTES = 4 << 20
"""Of a caption's file; img2dataset's JSON files have a few kilobytes."""


@dataclass(frozen=True)
class Fields:
    """Which endings hold the image and the caption, in order of preference; in any case, with or without a dot."""

    image_keys: Sequence[str] = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
    caption_keys: Sequence[str] = ("txt", "caption", "json")
    json_key: str = "caption"

    def __post_init__(self) -> None:
        for name in ("image_keys", "caption_keys"):
            given = getattr(self, name)
            keys = given.replace(",", ";").split(";") if isinstance(given, str) else given
            keys = tuple(str(key).strip().lower().removeprefix(".") for key in keys)
            if not keys or not all(keys):
                raise ValueError(f"data.{name} must name file endings, such as [jpg, png], got {given!r}")
            object.__setattr__(self, name, keys)


_RARE = ("jpe", "jfif", "apng", "dib", "heic", "heif", "jxl", "jp2", "j2k", "jpx")
_NETPBM = ("ppm", "pgm", "pbm", "pnm", "pfm")
PICTURES = frozenset((*Fields.image_keys, *_RARE, *_NETPBM, "tga", "ico", "psd"))
"""Endings that some trainer decodes as a picture, whatever Lookout was told to read."""

_NOT_FILES = ("hard link", "symbolic link", "device", "unknown type")  # WebDataset passes them over
_NAMELESS = frozenset(f".{ending}" for ending in (*Fields.image_keys, *Fields.caption_keys))


@dataclass(frozen=True)
class Sample:
    """Consecutive files of one key.  broken: why the tar ends behind them, if it does so early."""

    key: str
    members: tuple[Member, ...]
    broken: BrokenTar | None = None


@dataclass
class ShardIndex:
    """The sound samples of a shard (parallel lists), and the issues; their ids are positions in the shard.

    samples: how many there are, damaged ones too.  cut: whether the shard misses samples, no one knows how many.
    """

    positions: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    samples: int = 0
    cut: bool = False


def number_members(stream: BinaryIO, length: int) -> Iterator[tuple[int, str, Member]]:
    """The files of a shard of `length` bytes: position of the sample, its key, and the file.

    Position -1 and no key for a file that belongs to no sample. Raises BrokenTar.
    """
    position, key, endings = -1, None, set()  # type: int, str | None, set[str]
    for member in read_members(stream, length):
        parts = split_name(member.name)
        if parts is None:
            yield -1, "", member
            continue
        if parts[0] != key or parts[1] in endings:
            position, key, endings = position + 1, parts[0], set()
        endings.add(parts[1])
        yield position, key, member


def read_samples(stream: BinaryIO, length: int) -> Iterator[Sample]:
    """The samples of a shard of `length` bytes, damaged ones too; the place in this order is a sample's position.

    The last one before a break says so in `broken`, and BrokenTar is raised behind it.
    """
    last, last_key, members = 0, "", []  # type: int, str, list[Member]
    broken = None
    try:
        for position, key, member in number_members(stream, length):
            if position < 0:
                continue
            if position != last:
                yield Sample(last_key, tuple(members))
                members = []
            last, last_key = position, key
            members.append(member)
    except BrokenTar as found:
        broken = found
    if members:
        yield Sample(last_key, tuple(members), broken)
    if broken is not None:
        raise broken


def split_name(name: str) -> tuple[str, str] | None:
    """Key and ending (small letters) of a member; None for what belongs to no sample.

    As WebDataset does, the key ends at the first dot of the file's name. Hidden files and those without an ending
    belong to none. WebDataset takes `folder/.jpg` for a sample of the key `folder/`, so it counts as one.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, ending = base.partition(".")
    if not ending or not (stem or (folder and base.lower() in _NAMELESS)):
        return None
    return folder + slash + stem, ending.lower()


def index_shard(stream: BinaryIO, length: int, name: str, fields: Fields, limits: Limits) -> ShardIndex:
    """Index one shard; nothing is decoded, and of the images only the place is read."""
    index = ShardIndex()
    seen: set[str] = set()
    end = 0
    try:
        for sample in read_samples(stream, length):
            position, index.samples = index.samples, index.samples + 1
            source, end = f"{name}:{_brief(sample.key)}", sample.members[-1].end
            try:
                image, caption, notes = _usable(stream, sample, fields, limits)
            except DecodeError as damage:
                lost = max(1, len(_images(sample, fields))) if damage.kind == "missing image" else 1
                index.issues.append(Issue(position, source, damage.kind, damage.detail, samples=lost))
            else:
                index.positions.append(position)
                index.offsets.append(image.offset)
                index.lengths.append(image.size)
                index.captions.append(caption)
                notes += ["duplicate key"] if sample.key in seen else []
                index.issues += [Issue(position, source, note, note=True) for note in notes]
            seen.add(sample.key)
    except BrokenTar as broken:
        behind = length - broken.offset
        index.cut = broken.cut or not index.samples
        unused = any(issue.id == index.samples - 1 and not issue.note for issue in index.issues[-1:])
        lost = round(behind * index.samples / end) if end else 0  # as large as those that were read
        detail = f"{broken.reason}, at byte {broken.offset:,} of {length:,}; {behind:,} bytes are lost"
        lost = max(lost, 0 if unused else 1) if index.samples else 0
        index.issues.append(Issue(-1, name, broken.kind, detail, samples=lost))
    if not index.samples and not index.issues:
        index.cut = True
        index.issues.append(Issue(-1, name, "empty shard", f"{length:,} bytes hold no sample", samples=0))
    index.issues = _apart(index.issues)
    return index


def _usable(stream: BinaryIO, sample: Sample, fields: Fields, limits: Limits) -> tuple[Member, str, list[str]]:
    """The image, the caption and what is peculiar about a sample; raises Damage."""
    problems = [member.problem for member in sample.members if member.problem is not None]
    for problem in problems:
        if problem[0] not in _NOT_FILES:
            raise DecodeError(*problem)
    files = {split_name(member.name)[1]: member for member in sample.members if not member.problem}  # type: ignore[index]
    try:
        image = next((files[key] for key in fields.image_keys if key in files), None)
        if image is None:
            raise DecodeError("missing image", _listed(sample, fields, files))
        if image.size == 0:
            raise DecodeError("empty file")
        if image.size > limits.max_bytes:
            raise DecodeError("too large", f"{image.size:,} bytes, more than {limits.max_bytes:,}")
        caption, notes = _caption(stream, sample, fields, files)
    except DecodeError as damage:
        if damage.kind.startswith("missing") and sample.broken is not None:
            raise DecodeError(sample.broken.kind, "its other files lie behind the break") from None
        if damage.kind.startswith("missing") and problems:
            raise DecodeError(*problems[0]) from None
        raise
    if len(_images(sample, fields)) > 1:
        notes.append("several images, one used")
    return image, caption, notes


def _caption(stream: BinaryIO, sample: Sample, fields: Fields, files: dict[str, Member]) -> tuple[str, list[str]]:
    """The first caption that can be used, and what is peculiar about it; raises Damage."""
    damage = DecodeError("missing caption", _listed(sample, fields, files))
    for key in fields.caption_keys:
        if key not in files:
            continue
        member = files[key]
        try:
            if member.size > MAX_CAPTION_BYTES:
                raise DecodeError("broken caption", f"{member.size:,} bytes, more than {MAX_CAPTION_BYTES:,}")
            content = _content(stream, member)
            is_json = key.rpartition(".")[2] == "json"
            return clean_caption(json_value(content, fields.json_key) if is_json else content)
        except DecodeError as found:
            damage = found
    raise damage


def _content(stream: BinaryIO, member: Member) -> bytes:
    try:
        stream.seek(member.offset)
        return stream.read(member.size)
    except OSError as error:
        raise DecodeError("unreadable shard", error.strerror or str(error)) from None


def _images(sample: Sample, fields: Fields) -> list[Member]:
    """The files whose last ending is an image's, also behind other dots."""
    return [member for member in sample.members if _last_ending(member.name) in fields.image_keys]


def _brief(key: str) -> str:
    return key if len(key) <= 200 else f"{key[:60]}...{key[-137:]}"


def _last_ending(name: str) -> str:
    return name.rpartition(".")[2].lower()


def _listed(sample: Sample, fields: Fields, files: dict[str, Member]) -> str:
    """What a sample has instead of what it lacks, in at most some 200 characters."""
    some = ", ".join(ending[:16] for ending in list(files)[:6])
    more = f" and {len(files) - 6:,} more files" if len(files) > 6 else ""
    known = (*fields.image_keys, *fields.caption_keys)
    dotted = any("." in ending and _last_ending(ending) in known and ending not in known for ending in files)
    return f"has {some}{more}" + ("; keys with dots?" if dotted else "")


def _apart(issues: list[Issue]) -> list[Issue]:
    """Findings with a kind of their own for samples whose image and caption lie apart in the tar."""
    halves: dict[str, set[str]] = {}
    for issue in issues:
        if issue.kind in ("missing image", "missing caption"):
            halves.setdefault(issue.source, set()).add(issue.kind)
    apart = {source for source, kinds in halves.items() if len(kinds) == 2}
    return [
        Issue(issue.id, issue.source, "unsorted tar", issue.detail)
        if issue.source in apart and issue.kind in ("missing image", "missing caption")
        else issue
        for issue in issues
    ]
