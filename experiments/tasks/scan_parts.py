"""What a job of a scan in parts leaves: a table of each part, for `experiments.tasks.rank`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.unscored import SCORED, find_unscored
from experiments.pipeline.runner import Runner
from experiments.tasks.scan_result import where_from

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ScannedParts:
    """runners: number of a part -> its runner, whose scores are in the store.  columns: of each part, name ->
    scores (n,).  failed: column -> its error in some part."""

    runners: Mapping[int, Runner]
    columns: Mapping[int, Mapping[str, np.ndarray]]
    failed: Mapping[str, str]
    parts: int

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """part-<number>.parquet, one at a time; what to print, and the rows of results.csv."""
        rows = []
        for number, runner in self.runners.items():
            table = part_table(runner, self.columns[number])
            table.to_parquet(folder / f"part-{number:05d}.parquet", index=False)
            scored = int((table["status"] == SCORED).sum())
            rows.append({"part": number, "n": scored, "unscored": len(table) - scored, "parts": self.parts})
        n = sum(row["n"] for row in rows)
        text = (
            f"{n:,} samples scored in {len(rows)} of the parts. When all jobs have ended, run the same command "
            "without task.part and task.parts: it ranks in memory and reports. For more than memory holds:\n"
            "python -m experiments.tasks.rank <runs>/*/part-*.parquet --remove share=0.01 --out ranked\n"
        )
        return text, rows


def part_table(runner: Runner, columns: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """A row per sample of a part, by id: where it comes from, its caption, scores and `status`."""
    import pandas as pd

    pairs = runner.value("pairs")
    ids = np.asarray(pairs.ids)
    unscored = find_unscored(runner.experiment.source, runner.entry("data").path, ids)
    where, where_unscored = where_from([runner], [unscored])
    scored = pd.DataFrame({"id": ids, **where, "caption": list(pairs.captions), **columns, "status": SCORED})
    others = pd.DataFrame({"id": unscored.ids, **where_unscored, "status": unscored.status})
    texts = {name: pd.StringDtype() for name in ("key", "shard", "url", "caption", "status") if name in scored}
    whole = pd.concat([scored, others]) if len(others) else scored
    return whole.astype(texts).sort_values("id", kind="stable").reset_index(drop=True)
