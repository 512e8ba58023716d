"""What a job of a scan in parts leaves: a table of each part and its suspects, for `experiments.tasks.rank`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.row_data import Parquet
from experiments.data.sample_ids import shard_name
from experiments.data.shards import Shards
from experiments.data.unscored import SCORED, find_unscored
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.runtime.atomic import whole
from experiments.tasks.groups import Grouping
from experiments.tasks.part_suspects import write_suspects
from experiments.tasks.samples import Samples
from experiments.tasks.scan_result import where_from

if TYPE_CHECKING:
    import pandas as pd


def check_split(experiment: Experiment) -> None:
    """Refuse data that cannot be scanned in parts, with a ValueError."""
    if not isinstance(experiment.source, (Shards, Parquet)):
        raise ValueError("task.shards_per_part needs data=webdataset or data=parquet, whose files it splits")
    if experiment.model_spec.trains:
        raise ValueError("task.shards_per_part needs a trained model: see model=trained in docs/scan.md")
    names = list(map(shard_name, _files(experiment)[1]))
    if len(set(names)) < len(names):
        raise ValueError("task.shards_per_part needs shards of different file names, which ids are made of")


def split(runner: Runner, size: int) -> list[Runner]:
    """A runner of `size` shards, or Parquet files, each."""
    option, files = _files(runner.experiment)
    return [
        runner.replace(runner.experiment.replace(data={option: files[start : start + size]}))
        for start in range(0, len(files), size)
    ]


def _files(experiment: Experiment) -> tuple[str, list[str]]:
    source = experiment.source
    return ("shards", list(source.urls)) if isinstance(source, Shards) else ("path", source.files())


@dataclass(frozen=True)
class ScannedParts:
    """runners: number of a part -> its runner, whose scores are in the store.  columns: of each part, name ->
    scores (n,).  score: of each part, what orders its samples (n,); none of a part that cannot be ranked.
    failed: column -> its error in some part."""

    runners: Mapping[int, Runner]
    columns: Mapping[int, Mapping[str, np.ndarray]]
    score: Mapping[int, np.ndarray]
    failed: Mapping[str, str]
    parts: int
    grouping: Grouping

    def write(self, folder: Path) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """suspects-<number>.parquet and part-<number>.parquet, one part at a time; what to print, and the rows of
        results.csv."""
        rows = []
        for number, runner in self.runners.items():
            table, lost = part_table(runner, self.columns[number])
            file = folder / f"part-{number:05d}.parquet"
            if number in self.score:
                self._write_suspects(file, runner, table, self.score[number], lost)
            with whole(file) as temporary:
                table.to_parquet(temporary, index=False)
            scored = int((table["status"] == SCORED).sum())
            rows.append({"part": number, "n": scored, "unscored": len(table) - scored, "parts": self.parts})
        n = sum(row["n"] for row in rows)
        text = (
            f"{n:,} samples scored in {len(rows)} of the parts. When all jobs have ended, run the same command "
            "without task.part and task.parts: it ranks in memory and reports. For more than memory holds:\n"
            "python -m experiments.tasks.rank <runs>/*/part-*.parquet --remove share=0.01 --out ranked\n"
        )
        return text, rows

    def _write_suspects(
        self, file: Path, runner: Runner, table: pd.DataFrame, score: np.ndarray, lost: dict[str, int]
    ) -> None:
        import pandas as pd

        samples, labels = Samples([runner], [0]), runner.experiment.labels
        scored = pd.Index(table["id"]).get_indexer(pd.Index(samples.ids))
        about = {"data": labels["data"], "model": labels["model"], "lost": lost}
        target = file.with_name(file.name.replace("part-", "suspects-"))
        write_suspects(target, table, scored, samples, score, self.grouping, **about)


def part_table(runner: Runner, columns: Mapping[str, np.ndarray]) -> tuple[pd.DataFrame, dict[str, int]]:
    """A row per sample of a part, by id: where it comes from, its caption, scores and `status`; and what is lost,
    see `unscored.Unscored`."""
    import pandas as pd

    pairs = runner.value("pairs")
    ids = np.asarray(pairs.ids)
    unscored = find_unscored(runner.experiment.source, runner.entry("data").path, ids)
    where, where_unscored = where_from([runner], [unscored])
    scored = pd.DataFrame({"id": ids, **where, "caption": list(pairs.captions), **columns, "status": SCORED})
    others = pd.DataFrame({"id": unscored.ids, **where_unscored, "status": unscored.status})
    texts = {name: pd.StringDtype() for name in ("key", "shard", "url", "caption", "status") if name in scored}
    every = pd.concat([scored, others]) if len(others) else scored
    return every.astype(texts).sort_values("id", kind="stable").reset_index(drop=True), unscored.lost
