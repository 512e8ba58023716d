"""Digests of the files of a finished stage, kept in its meta.json, and what no longer agrees with them.

A digest is BLAKE2b over the BLAKE2b digests of chunks of 16 MB, so that large files use several cores.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

META = "meta.json"
DIGEST = ".blake2b"  # ending of the digest beside a file that belongs to no stage
EXTRA = "does not belong here"
_CHUNK = 1 << 24
_OWN = "digest"  # of meta.json, in itself
_NEVER_EMPTY = (".arrow", ".json", ".jsonl", ".npy", ".npz", ".parquet", ".safetensors")


@dataclass(frozen=True)
class Fault:
    """A file of a finished stage that is not as it was published, and what is wrong with it."""

    name: str
    what: str

    def __str__(self) -> str:
        return f"{self.name}: {self.what}"


def digest(file: Path) -> str:
    """32 hexadecimal digits of a file's content."""
    with open(file, "rb") as stream:
        starts = range(0, os.fstat(stream.fileno()).st_size, _CHUNK)
        read = functools.partial(_chunk, stream.fileno())
        if len(starts) <= 1:
            parts = [read(start) for start in starts]
        else:
            with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1, 8)) as pool:
                parts = list(pool.map(read, starts))
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _chunk(opened: int, start: int) -> bytes:
    content = hashlib.blake2b(digest_size=32)
    left = _CHUNK
    while left and (block := os.pread(opened, min(left, 1 << 20), start + _CHUNK - left)):
        content.update(block)
        left -= len(block)
    return content.digest()


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Relative path -> size and digest, of all files in `folder` but meta.json and hidden ones."""
    return {
        name: {"bytes": (folder / name).stat().st_size, "blake2b": digest(folder / name)} for name in _names(folder)
    }


def sealed(meta: Mapping[str, Any]) -> str:
    """The text of a meta.json that holds a digest of itself."""
    plain = json.loads(json.dumps(meta))
    return json.dumps({**plain, _OWN: _of_meta(plain)}, indent=1, sort_keys=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """A finished stage's meta.json; a ValueError says what is wrong with it."""
    file = folder / META
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError("is missing") from None
    except PermissionError:
        raise
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    if not text.strip():
        raise ValueError("is empty")
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise ValueError(f"cannot be read ({error})") from None
    if not isinstance(meta, dict) or "seconds" not in meta or meta.get("key", folder.name) != folder.name:
        raise ValueError(f"is not that of {folder.name}")
    if ("files" in meta or _OWN in meta) and meta.get(_OWN) != _of_meta(meta):
        raise ValueError("has been changed")
    return meta


def faults(folder: Path) -> list[Fault]:
    """What is wrong with a finished stage; empty if its files are as they were published.

    Of a stage that was finished before files had digests, only files without content are noticed.
    Raises a PermissionError for a file that may not be read.
    """
    try:
        expected = read_meta(folder).get("files")
    except ValueError as error:
        return [Fault(META, str(error))]
    try:
        names = set(_names(folder))
        if expected is None:
            suspicious = sorted(name for name in names if name.endswith(_NEVER_EMPTY))
            return [Fault(name, "is empty") for name in suspicious if not (folder / name).stat().st_size]
        found = [Fault(name, "is missing") for name in sorted(expected.keys() - names)]
        found += [Fault(name, EXTRA) for name in sorted(names - expected.keys())]
        for name in sorted(expected.keys() & names):
            size, wanted = (folder / name).stat().st_size, expected[name]["bytes"]
            if size != wanted:
                found.append(Fault(name, f"has {size:,} bytes in place of {wanted:,}"))
            elif digest(folder / name) != expected[name]["blake2b"]:
                found.append(Fault(name, "its content has changed (another digest)"))
    except PermissionError:
        raise
    except OSError as error:  # a broken disk, or another job that has set the folder aside meanwhile
        return [Fault(error.filename or str(folder), f"cannot be read ({error.strerror})")]
    return found


def is_key(name: str) -> bool:
    """Whether a folder of this name is a finished stage's."""
    return re.fullmatch(r"[0-9a-f]{16}(-\d+)?", name) is not None  # a table's key ends with its width


def unreadable(error: Exception, folder: Path) -> bool:
    """Whether `error` comes from damaged files in `folder`, as far as that can be seen."""
    if isinstance(error, (EOFError, zipfile.BadZipFile, zlib.error, json.JSONDecodeError)):
        return True
    if not isinstance(error, OSError) or error.filename is None:
        return False
    return Path(os.fsdecode(error.filename)).is_relative_to(folder)


def _of_meta(meta: Mapping[str, Any]) -> str:
    text = json.dumps({key: value for key, value in meta.items() if key != _OWN}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _names(folder: Path) -> Iterator[str]:
    """Relative paths of the files in `folder`, without meta.json and hidden ones."""
    for inside, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.relpath(os.path.join(inside, name), folder)
            if path != META and not name.startswith("."):
                yield path


def _raise(error: OSError) -> None:
    raise error
