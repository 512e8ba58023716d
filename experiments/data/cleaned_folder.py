"""A folder of cleaned shards, tar or Parquet: whose it is, and whether it is complete.

unfinished.json   written before anything else, removed when all shards are whole: what is being cleaned, and how
<shard>           a shard that is whole; `<shard>.partial` is one that is being written
cleaned.json      the report, written last; it holds what unfinished.json held

A killed clean of the same configuration goes on in its folder. Shards in an unfinished folder are refused as data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.data.shard_pairs import is_remote, local_path

UNFINISHED, CLEANED, PARTIAL = "unfinished.json", "cleaned.json", ".partial"
_NEW = ".new"


def refuse_unfinished(urls: Sequence[str], option: str = "data.shards") -> list[str]:
    """`urls` of shards; a ValueError if any lies in a folder that a killed clean has left half-written.

    option: which names the shards, for the message.
    """
    urls = list(urls)
    for folder in sorted({os.path.dirname(local_path(url)) for url in urls if not is_remote(url)}):
        if os.path.exists(os.path.join(folder, UNFINISHED)):
            raise ValueError(
                f"{option}: {folder} holds half-written cleaned shards; run the same task=clean again to "
                "complete them, or remove the folder"
            )
    return urls


def claim(folder: Path, shards: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Refuse a folder that is not the one of a clean with these settings; changes nothing.

    shards: file names of those to be written.  settings: plain JSON values. An empty or missing folder is good.
    Raises ValueError.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"task.write_shards={folder} must be a folder, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"task.write_shards={folder} cannot be written: {there} is read-only")
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()}
    if not names:
        return
    mark = next((name for name in (UNFINISHED, CLEANED) if name in names), None)
    ours = {UNFINISHED, CLEANED, UNFINISHED + _NEW, CLEANED + _NEW, *shards, *(name + PARTIAL for name in shards)}
    foreign = sorted(names - ours)
    if (mark is None and names != {UNFINISHED + _NEW}) or foreign:
        example = foreign[0] if foreign else sorted(names)[0]
        raise ValueError(f"task.write_shards must be a new or empty folder, but {folder} holds files ({example})")
    if mark is not None and (differs := _difference(folder / mark, settings)):
        raise ValueError(f"task.write_shards: {folder} holds shards cleaned with {differs}; name another folder")


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Mark the folder as unfinished; call `claim` before."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / UNFINISHED, settings)


def finish(folder: Path, report: Mapping[str, Any]) -> None:
    """Write the report, then remove the mark."""
    write_json(folder / CLEANED, report)
    (folder / UNFINISHED).unlink()


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write the whole file or nothing, also when the machine stops."""
    new = file.with_name(file.name + _NEW)
    with open(new, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    new.rename(file)


def _difference(file: Path, settings: Mapping[str, Any]) -> str | None:
    """The first setting in which a mark differs, in words; None if none does."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        return f"a configuration that cannot be read ({file.name})"
    differs = next((name for name, value in settings.items() if found.get(name) != value), None)
    return {None: None, "digest": "other suspects, or from shards that have changed since"}.get(
        differs, f"another {differs}"
    )
