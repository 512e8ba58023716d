"""Files that are there as a whole or not at all, whatever happens to the process or the disk meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFT_BEHIND = ".*.tmp"
"""Pattern of what a killed process may leave."""


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A temporary path beside `file` to write to; it takes the file's place once everything is on the disk.

    After an error or a kill the earlier `file`, if any, is untouched. An error also removes the temporary one.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(file.parent)


def write_whole(file: Path, text: str) -> None:
    """`file.write_text(text)`, as a whole or not at all."""
    with whole(file) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk; an OSError where the disk has no room."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
