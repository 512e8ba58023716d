"""The folder that a scan or a clean has left, read again: its table, its embeddings, its pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.data.damage import DecodeError
from experiments.data.image_files import ImageFolder
from experiments.data.provenance import sample_members
from experiments.data.sample_ids import locate
from experiments.data.shard_pairs import is_remote
from experiments.data.tar_index import PICTURES, split_name

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 200_000_000  # of a picture


@dataclass(frozen=True)
class ScanFolder:
    """table: a row per sample of the data, see `scores.parquet` in docs/scan.md.  sources: what scan.json holds."""

    path: Path
    table: pd.DataFrame
    sources: dict[str, Any]

    @classmethod
    def read(cls, path: Path) -> ScanFolder:
        """Raises ValueError for a folder that no scan or clean has left."""
        import pandas as pd

        for name in ("scores.parquet", "scan.json"):
            if not (path / name).is_file():
                raise ValueError(f"{path} must be the folder of a scan or a clean, but it holds no {name}")
        try:
            table = pd.read_parquet(path / "scores.parquet")
            sources = json.loads((path / "scan.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
        if not isinstance(sources, dict) or not {"id", "key", "shard", "rank", "status"} <= {*table}:
            raise ValueError(f"{path} holds no scores of a scan: scores.parquet or scan.json is of another kind")
        return cls(path, table, sources)

    def suspects(self, most: int) -> pd.DataFrame:
        """The scored samples up to a number, the most suspicious first, numbered from 0."""
        scored = self.table[self.table["status"] == "scored"]
        return scored.sort_values("rank", kind="stable").head(most).reset_index(drop=True)

    def embeddings(self, ids: np.ndarray) -> np.ndarray:
        """(n, d) float32 image embeddings of samples; ValueError where they are not in the store any more."""
        found: np.ndarray | None = None
        filled = np.zeros(len(ids), bool)
        order = np.argsort(ids)
        for folder in self.sources.get("embeddings", []):
            try:
                mine = np.load(Path(folder) / "ids.npy")
                image = np.load(Path(folder) / "image.npy", mmap_mode="r")
            except (OSError, ValueError) as error:
                raise ValueError(f"the scan's embeddings in {folder} cannot be read: {error}") from None
            place = np.searchsorted(ids[order], mine)
            place[place == len(ids)] = 0
            here = ids[order][place] == mine
            if found is None:
                found = np.empty((len(ids), image.shape[1]), np.float32)
            found[order[place[here]]] = image[np.flatnonzero(here)]
            filled[order[place[here]]] = True
        if found is None or not filled.all():
            raise ValueError(f"the scan's embeddings lack {int((~filled).sum()):,} of {len(ids):,} samples")
        return found

    def pictures(self, samples: pd.DataFrame) -> Iterator[tuple[int, str, bytes]]:
        """Row of `samples` (id, key), file name ending and bytes of each picture, as the data hold it.

        Of a sample with several pictures, the first. A picture that cannot be read is left out. Raises ValueError
        for data without files here: drawn ones, and remote shards.
        """
        shards = self.sources.get("shards") or []
        if shards:
            yield from _of_shards(shards, samples["id"].to_numpy(np.int64))
        elif self.sources.get("images"):
            yield from self._of_files(samples["key"].tolist())
        else:
            raise ValueError(f"{self.path}: these data have no picture files")

    def _of_files(self, names: list[Any]) -> Iterator[tuple[int, str, bytes]]:
        images = ImageFolder(self.sources["images"], bool(self.sources.get("follow_links")), MOST_BYTES)
        for row, name in enumerate(names):
            ending = os.path.splitext(str(name))[1].lstrip(".").lower()
            try:
                content = images.read(name if isinstance(name, str) else None)
            except DecodeError:
                continue
            yield row, ending if ending in PICTURES else "jpg", content


def _of_shards(shards: list[str], ids: np.ndarray) -> Iterator[tuple[int, str, bytes]]:
    remote = [url for url in shards if is_remote(url)]
    if remote:
        raise ValueError(f"pictures are read from local shards; {remote[0]} is not")
    number, position = locate(ids, shards)
    for shard in np.unique(number).tolist():
        rows = np.flatnonzero(number == shard)
        wanted = dict(zip(position[rows].tolist(), rows.tolist(), strict=True))
        try:
            with open(shards[shard], "rb") as stream:
                length = os.fstat(stream.fileno()).st_size
                for at, (_, members) in enumerate(sample_members(stream, length)):
                    if at not in wanted:
                        continue
                    for member in members:
                        ending = (split_name(member.name) or ("", ""))[1].rsplit(".", 1)[-1].lower()
                        if ending in PICTURES and not member.problem and member.size <= MOST_BYTES:
                            stream.seek(member.offset)
                            yield wanted[at], ending, stream.read(member.size)
                            break
        except OSError as error:
            raise ValueError(f"{shards[shard]} cannot be read: {error.strerror}") from None
