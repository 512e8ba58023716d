"""A record of the files that were written before, and from what, so that nothing is drawn twice.

`<out>/.output_cache.json` maps a name (some figures, a whole command) to a digest of its cells, options and this
package's code, and to its files. It is up to date while the digest is the same and the files exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any


class OutputCache:
    """The record of one output folder."""

    def __init__(self, out: Path) -> None:
        self.out, self.file = out, out / ".output_cache.json"
        self.known: dict[str, Any] = json.loads(self.file.read_text()) if self.file.exists() else {}

    @cached_property
    def _code(self) -> bytes:
        sources = sorted(path for path in Path(__file__).parent.rglob("*.*") if path.suffix != ".pyc")
        return b"".join(hashlib.sha256(source.read_bytes()).digest() for source in sources)

    def digest(self, *parts: object) -> str:
        return hashlib.sha256(repr(parts).encode() + self._code).hexdigest()

    def files(self, name: str, digest: str) -> list[Path] | None:
        """The files of `name`, if they were written from exactly this and are all there."""
        entry = self.known.get(name, {})
        files = [self.out / file for file in entry.get("files", ())]
        return files if entry.get("digest") == digest and all(file.exists() for file in files) else None

    def note(self, name: str, digest: str, files: Iterable[Path]) -> None:
        """Remember that `files` are there now; written at once, so that a killed command does not start over."""
        there = [str(file.relative_to(self.out)) for file in files]
        self.known[name] = {"digest": digest, "files": there}
        self.file.write_text(json.dumps(self.known, indent=1))


def store_state(store: Path) -> list[str]:
    """What a store's cells and defences are, without reading them: their folders are named by their keys."""
    done = [file.parent.name for file in (store / "evaluate").glob("*/cell.json")]
    failed = [f"{file.name} {file.read_text()}" for file in (store / "evaluate").glob("*.failed.json")]
    defended = [f"defence {file.parent.name}" for file in (store / "defence").glob("*/row.json")]
    return sorted(done) + sorted(failed) + sorted(defended)
