"""`python -m experiments.runtime.verify --store STORE` (`make verify`): compare finished stages with their digests.

Nothing is changed: the next run that needs a damaged result sets it aside and computes it again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.runtime.digests import DIGEST, META, digest, faults, is_key, read_meta


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry; returns the exit status: 1 if something is damaged, 2 if there is no store."""
    parser = argparse.ArgumentParser(prog="python -m experiments.runtime.verify", description=__doc__)
    parser.add_argument("--store", default="store", type=Path, help="the stage store (default: store)")
    root = parser.parse_args(arguments).store
    if not root.is_dir():
        parser.error(f"there is no folder {str(root)!r}")
    finished = unchecked = damaged = size = 0
    for folder in results(root):
        try:
            found = faults(folder)
        except PermissionError as error:
            damaged += 1
            print(f"{folder.relative_to(root)}: {error.filename} may not be read")
            continue
        if found and not folder.is_dir():  # another job has set it aside meanwhile
            continue
        finished += 1
        damaged += bool(found)
        for fault in found:
            print(f"{folder.relative_to(root)}: {fault}")
        if found and found[0].name == META:
            continue
        files = read_meta(folder).get("files")
        unchecked += files is None
        size += sum(file["bytes"] for file in (files or {}).values())
    for file in sorted(root.glob(f"index/*.parquet{DIGEST}")):
        index = file.with_name(file.name.removesuffix(DIGEST))
        if index.exists() and digest(index) != file.read_text().strip():
            damaged += 1
            print(f"{index.relative_to(root)}: its content has changed (another digest)")
    aside = sum(1 for _ in root.glob("set-aside/*/*"))
    print(
        f"{root}: {finished} results, {size / 1e6:,.0f} MB compared with their digests; {damaged} damaged, "
        f"{unchecked} from before files had digests, {aside} set aside earlier"
    )
    return 1 if damaged else 0


def results(root: Path) -> list[Path]:
    """The folders of finished stages: those named by a key, below folders named by a stage."""
    return sorted(path for path in root.glob("*/*") if is_key(path.name) and path.is_dir())


if __name__ == "__main__":
    sys.exit(main())
