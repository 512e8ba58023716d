"""A cleaned copy of data: what is the same whether the files are tar shards or Parquet.

Every sample is kept, removed or unscored; for each file and in total the three must add up to the samples that the
file holds, as counted again from the file itself.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from experiments.data.cleaned_folder import PARTIAL, begin, claim, finish

if TYPE_CHECKING:
    import pandas as pd

KEPT, REMOVED, UNSCORED = "kept", "removed", "unscored"
"""What becomes of a sample."""


class Copier(Protocol):
    """Copies files of samples without some of these.

    names: of the files, all different.
    """

    names: list[str]

    def fingerprint(self) -> str:
        """Of the files as they are."""

    def locate(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) number of the file and (n,) position in it of each id."""

    def samples(self, number: int) -> int:
        """How many samples a file holds, counted from the file; 0 for one that cannot be read."""

    def copy(self, number: int, target: Path, kept: np.ndarray) -> dict[str, Any]:
        """Write the samples at the positions `kept` (m,), sorted, to `target`, unless it holds them already.

        What to report of it, `written` among it.
        """


def tally(fates: pd.DataFrame, members: int, of: str = "the data") -> dict[str, Any]:
    """Counts of samples: members, kept, removed, and unscored by kind; of those that were decided, each decision.

    fates: a row per sample: id, fate, status, and decision if there are any.  Raises RuntimeError unless
    kept + removed + unscored = members.
    """
    counts = Counter(fates["fate"])
    kinds = Counter(fates.loc[fates["fate"] == UNSCORED, "status"])
    kept, removed, unscored = counts[KEPT], counts[REMOVED], sum(kinds.values())
    if kept + removed + unscored != members or fates["id"].duplicated().any():
        raise RuntimeError(
            f"{of}: {kept:,} samples kept + {removed:,} removed + {unscored:,} unscored are not the {members:,} "
            "that there are; have the data changed since they were scanned?"
        )
    found = {"members": members, KEPT: kept, REMOVED: removed, UNSCORED: dict(kinds.most_common())}
    if "decision" in fates:
        found["decisions"] = dict(sorted(Counter(fates.loc[fates["decision"] != "", "decision"]).items()))
    return found


def write_copy(
    copier: Copier, fates: pd.DataFrame, folder: Path, settings: Mapping[str, Any], keep_unscored: bool = False
) -> dict[str, dict[str, Any]]:
    """Copy the files without the removed samples and, unless `keep_unscored`, the unscored ones.

    fates: a row per sample of the data: id, fate, status.  settings: of the clean, see `cleaned_folder.claim`.
    A file appears under its name when it is whole. A folder that a killed clean with the same settings and
    suspects has left is completed. Raises ValueError for a folder that holds anything else, RuntimeError if a count
    does not come out.

    Returns for each file's name its `tally` and what `Copier.copy` reports.
    """
    settings = {**settings, "digest": _digest(copier, fates)}
    claim(folder, copier.names, settings)
    begin(folder, settings)
    file, position = copier.locate(fates["id"].to_numpy(np.int64))
    wanted = fates["fate"].isin([KEPT, UNSCORED] if keep_unscored else [KEPT]).to_numpy()
    report: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(copier.names):
        mine = file == number
        counts = tally(fates[mine], copier.samples(number), name)
        report[name] = counts | copier.copy(number, folder / name, np.sort(position[mine & wanted]))
    total = tally(fates, sum(counts["members"] for counts in report.values()))
    samples = {name: counts["written"] for name, counts in report.items()}
    finish(folder, {**settings, **total, "samples": samples, "shards": report})
    return report


def write_whole_file(
    target: Path, write: Callable[[Path], None], is_whole: Callable[[Path], bool], what: str
) -> None:
    """Write a file beside `target`, look at it again, and give it its name; RuntimeError if it is not `what`."""
    unfinished = target.with_name(target.name + PARTIAL)
    write(unfinished)
    if not is_whole(unfinished):
        raise RuntimeError(f"{target}: what was written is not {what}")
    unfinished.rename(target)


def _digest(copier: Copier, fates: pd.DataFrame) -> str:
    """Of the files as they are, and of what is to become of each sample."""
    digest = hashlib.sha256(copier.fingerprint().encode())
    digest.update(fates["id"].to_numpy("<i8").tobytes())
    digest.update("\n".join(fates["fate"]).encode())
    return digest.hexdigest()[:32]
