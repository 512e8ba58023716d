"""Image files below a folder, by the names that a table or a listing gives: names are taken as they are.

A path must not lead out of the folder; a symbolic link in it does only where links are followed.
"""

from __future__ import annotations

import os
import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.damage import DecodeError


@dataclass(frozen=True)
class ImageFolder:
    """Reads files below `root`, up to `max_bytes` each.

    follow_links: whether symbolic links may lead out of it, as those of Hugging Face's cache and of DVC do.
    """

    root: str
    follow_links: bool = False
    max_bytes: int = 200_000_000

    def stamp(self, path: Any) -> str:
        """The file's size, time and mode, which change with the file; empty if there is no file."""
        if not isinstance(path, str):
            return ""
        try:
            status = os.stat(os.path.join(self.root, path))
        except (OSError, ValueError):
            return ""
        return f"{status.st_size} {status.st_mtime_ns} {status.st_mode}"

    def read(self, path: str | None) -> bytes:
        """The file's bytes; raises Damage."""
        if path is None:
            raise DecodeError("missing file", "the table names none")
        try:
            path.encode()
        except UnicodeEncodeError:
            raise DecodeError("broken file name", "half a surrogate pair") from None
        try:
            file = self._resolve(path)
            status = os.stat(file)
            if not stat.S_ISREG(status.st_mode):
                raise DecodeError("missing file", "not a regular file")
            if status.st_size > self.max_bytes:
                raise DecodeError("too large", f"{status.st_size:,} bytes, more than {self.max_bytes:,}")
            return file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise DecodeError("missing file", self._near(path)) from None
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise DecodeError("unreadable file", f"{type(error).__name__}: {error}") from None

    def _resolve(self, path: str) -> Path:
        root = Path(self.root).resolve()
        file = (root / path).resolve()
        if file.is_relative_to(root):
            return file
        spelled = Path(os.path.normpath(root / path))
        inside = spelled.is_relative_to(root) or spelled.is_relative_to(os.path.abspath(self.root))
        if not inside or ".." in Path(path).parts:
            raise DecodeError("outside the folder", f"leads to {file}")
        if not self.follow_links:
            raise DecodeError("link out of the folder", f"leads to {file}; follow_links=true follows it")
        return file

    def _near(self, path: str) -> str:
        """Whether there is a file whose name only looks the same."""
        forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
        for other in (path.strip(), " ".join(path.split()), *forms):
            if other != path and not os.path.isabs(other) and self.stamp(other):
                return f"but there is {other!a}, of which this is another spelling: {path!a}"
        return ""
