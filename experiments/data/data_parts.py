"""Files that a killed build of data leaves for the next one; they are checked before they are used.

A finished part of a build is a pair of files, <number>.npz and <number>.json; the index of a shard is one Parquet
file, with its digest beside it.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.runtime.atomic import whole, write_whole
from experiments.runtime.digests import DIGEST, digest

log = logging.getLogger(__name__)


def drop_damaged(parts: Path) -> int:
    """Remove pairs with a file that cannot be read, so that they are made again; returns their number."""
    dropped = 0
    for array in sorted(parts.glob("*.npz")):
        issues = array.with_suffix(".json")
        if not issues.exists():  # unfinished
            continue
        try:
            json.loads(issues.read_text(encoding="utf-8"))
            with zipfile.ZipFile(array) as content:
                whole_part = content.testzip() is None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            whole_part = False
        if not whole_part:
            dropped += 1
            log.warning("%s or .json beside it cannot be read: both are removed and made again", array)
            array.unlink()
            issues.unlink()
    return dropped


@contextmanager
def indexed(file: Path) -> Iterator[Path]:
    """A temporary path to write a shard's index to; it becomes `file`, with its digest beside it."""
    with whole(file) as temporary:
        yield temporary
        write_whole(digest_file(file), digest(temporary))


def is_indexed(file: Path) -> bool:
    """Whether a shard's index is there and sound; a damaged one is set aside. Older ones have no digest."""
    if not file.exists():
        return False
    known = digest_file(file)
    if file.stat().st_size and (not known.exists() or known.read_text().strip() in ("", digest(file))):
        return True
    number = sum(1 for _ in file.parent.glob("*.corrupt-*")) + 1
    place = file.rename(file.with_name(f"{file.name}.corrupt-{number}"))
    log.warning("the index %s is damaged: set aside as %s, made again", file, place.name)
    return False


def digest_file(file: Path) -> Path:
    return file.with_name(file.name + DIGEST)
