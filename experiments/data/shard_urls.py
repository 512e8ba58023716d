"""Which tar files `data.shards` names, by patterns, folders and globs; and what each of them is like now.

`data=parquet` names its files in the same ways (`FileKind`).
"""

from __future__ import annotations

import contextlib
import errno
import glob
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from experiments.data.shard_pairs import file_stamp, is_remote, local_path
from experiments.runtime.safe_text import printable

MOST = 1_000_000
"""Shards that one pattern may name."""
_RANGE = re.compile(r"\{(-?\d{1,18})\.\.(-?\d{1,18})")


@dataclass(frozen=True)
class FileKind:
    """What an option names.  nested: a folder without such files stands for those in the folders below it."""

    option: str = "data.shards"
    endings: tuple[str, ...] = (".tar",)
    what: str = "tar file"
    nested: bool = False

    def has(self, name: str) -> bool:
        return name.lower().endswith(self.endings)


TARS = FileKind()
PARQUET = FileKind("data.path", (".parquet", ".pq"), "Parquet file", nested=True)


def expand(pattern: str, follow_links: bool = False, kind: FileKind = TARS) -> list[str]:
    """The files that a pattern names, in order, local ones as absolute paths.

    A pattern is a path or URL with braces (`{00000..00331}`) or glob characters (`*`, `?`, `[0-9]`), a folder, or
    several of these joined by `::`, as open_clip takes them. A local path that exists is taken as it is.
    Hidden files, such as macOS's `._00000.tar`, are no shards. A shard that a folder or glob lists and that is a
    link out of its folder is refused, unless `follow_links`; raises ValueError.
    """
    if pattern.startswith("pipe:"):
        raise ValueError(f"{kind.option}={pattern!r}: pipes have no random access; give files or URLs")
    if "::" in pattern and not _exists(pattern):
        parts = pattern.split("::")
        if all(any(end in part for end in kind.endings) or _is_folder(part) for part in parts):
            return [url for part in parts for url in expand(part, follow_links, kind)]
    if _exists(pattern):
        return _one(pattern, follow_links, kind)
    from braceexpand import braceexpand

    numbers = [abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(pattern)]
    if math.prod(numbers) > MOST:  # `braceexpand` would hold them all
        raise ValueError(f"{kind.option}={pattern!r} names {math.prod(numbers):,} shards, more than {MOST:,}")
    try:
        names = list(braceexpand(pattern))
    except ValueError as error:
        raise ValueError(f"{kind.option}={pattern!r}: {error}") from None
    return [url for name in names for url in _one(name, follow_links, kind)]


def _one(name: str, follow_links: bool, kind: FileKind) -> list[str]:
    """A name without braces to the files that it stands for."""
    if is_remote(name):
        return _remote_glob(name, kind) if glob.has_magic(name) and not name.startswith("http") else [name]
    path = os.path.abspath(os.path.expanduser(local_path(name)))
    if os.path.isdir(path):
        return _listed(name, path, follow_links, kind)
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    found = [match for match in sorted(glob.glob(path, recursive=True)) if _visible(match)]
    shards = [match for match in found if kind.has(match) and not os.path.isdir(match)]
    folders = [match for match in found if os.path.isdir(match)]
    if not shards and folders:
        return [shard for folder in folders for shard in _listed(name, folder, follow_links, kind)]
    shards = shards or found
    if not shards:
        raise ValueError(f"{kind.option}={name!r} is a pattern that no file matches")
    if not follow_links:
        steady = path.split(os.sep)
        steady = steady[: next(i for i, part in enumerate(steady) if glob.has_magic(part))]
        _refuse_links(shards, os.sep.join(steady) or os.sep, kind)
    return shards


def _listed(name: str, folder: str, follow_links: bool, kind: FileKind) -> list[str]:
    names = sorted(entry for entry in os.listdir(folder) if kind.has(entry) and _visible(entry))
    shards = [os.path.join(folder, entry) for entry in names] or (_below(folder, kind) if kind.nested else [])
    if not shards:
        raise ValueError(f"{kind.option}={name!r} is a folder without {kind.what}s")
    if not follow_links:
        _refuse_links(shards, folder, kind)
    return shards


def _below(folder: str, kind: FileKind) -> list[str]:
    """The files in the folders below, but not in hidden ones, nor in those that are links."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(filter(_visible, folders))
        found += [os.path.join(place, name) for name in sorted(names) if kind.has(name) and _visible(name)]
    return found


def _refuse_links(shards: list[str], folder: str, kind: FileKind) -> None:
    root = Path(folder).resolve()
    for shard in shards:
        target = Path(os.path.realpath(shard))
        if not target.is_relative_to(root):
            raise ValueError(
                f"{kind.option}: {printable(shard)} is a link out of the folder, to {printable(target)};"
                " data.follow_links=true follows such links (Hugging Face's cache and DVC make them)"
            )


def _visible(path: str) -> bool:
    return not os.path.basename(path).startswith(".")


def _exists(name: str) -> bool:
    return not is_remote(name) and os.path.lexists(os.path.expanduser(local_path(name)))


def _is_folder(name: str) -> bool:
    return not is_remote(name) and os.path.isdir(os.path.expanduser(local_path(name)))


def _remote_glob(name: str, kind: FileKind) -> list[str]:
    system, path = file_system(name)
    found = sorted(match for match in system.glob(path) if _visible(match))
    shards = [system.unstrip_protocol(match) for match in found if kind.has(match)]
    if not shards:
        raise ValueError(f"{kind.option}={name!r} is a pattern that no {kind.what} matches")
    return shards


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL and the path there; a ValueError says which package is missing."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ValueError(f"data.shards={url!r} cannot be opened: {error}") from None
    return system, path


def check_schemes(urls: list[str]) -> None:
    """Refuse, before any work, URLs whose package is missing: ValueError. Nothing is fetched."""
    for url in {url.split("://", 1)[0]: url for url in urls if is_remote(url)}.values():
        file_system(url)


def stamp(url: str) -> list[Any]:
    """What changes when a shard does: its size, and its time or tag; or why it cannot be read."""
    if not is_remote(url):
        return file_stamp(local_path(url))
    system, path = file_system(url)
    try:
        facts = system.info(path)
    except FileNotFoundError:
        return ["missing"]
    except PermissionError:
        return ["unreadable"]
    except Exception as error:  # each file system has its own
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"data.shards={url!r} cannot be reached: {reason}") from None
    return [facts.get("size"), *(str(facts[key]) for key in ("ETag", "etag", "mtime", "created") if key in facts)]


@contextlib.contextmanager
def open_shard(url: str) -> Iterator[tuple[BinaryIO, int]]:
    """A shard to read from beginning to end, and its length in bytes; raises OSError."""
    if is_remote(url):
        system, path = file_system(url)
        with system.open(path, "rb", block_size=8 << 20, cache_type="readahead") as stream:
            yield stream, system.size(path)
    else:
        if os.path.exists(local_path(url)) and not os.path.isfile(local_path(url)):
            raise OSError(errno.EINVAL, "no regular file")
        with open(local_path(url), "rb") as stream:
            yield stream, os.fstat(stream.fileno()).st_size
