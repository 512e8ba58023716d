"""What to do after a scan: where to look, how to clean, and what was not scanned."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.data.row_data import Parquet
from experiments.data.shard_pairs import is_remote
from experiments.data.shards import Shards

_OWN = ("task=", "task.part=", "task.parts=", "task.gallery=")


def next_steps(metadata: dict[str, Any], source: Any, folder: Path, overrides: Sequence[str] | None) -> list[str]:
    """Lines of summary.md.

    metadata: of the scan.  source: its data.  folder: with its results.  overrides: of its command line; None: it
    was not started by one.
    """
    lines = ["", "## Next", "", f"- Look: open {folder.absolute() / 'suspects.html'} in a browser."]
    if overrides is not None:
        lines.append(f"- Clean (docs/scan.md has other thresholds): `{clean_command(source, overrides)}`")
    missed = sum(metadata["unscored"].values())
    lost = sum(metadata["lost"].values())
    if missed or lost:
        about = f", and about {lost:,} could not be read" if lost else ""
        lines.append(
            f"- Not scanned: {missed:,} of {metadata['members']:,} samples{about}; scores.parquet names them in "
            "`status`, and task=clean drops them unless task.unscored=keep."
        )
    else:
        lines.append(f"- Not scanned: nothing; all {metadata['members']:,} samples have a score.")
    return lines


def clean_command(source: Any, overrides: Sequence[str]) -> str:
    """The command line that removes the 5 % that rank highest, for a scan with these overrides."""
    words = ["task=clean", "task.remove.share=0.05"]
    if isinstance(source, Parquet) or (
        isinstance(source, Shards) and not any(is_remote(url) for url in source.urls)
    ):
        words.append("task.write_shards=cleaned")
    words += [override for override in overrides if not override.startswith(_OWN)]
    return shlex.join(["python", "run.py", *words])
