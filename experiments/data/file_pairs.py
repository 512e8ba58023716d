"""Pairs whose images stay in their files and are decoded on demand: data too large for one array.

files.arrow   id (int64), path, caption; memory-mapped
files.json    size and limits of the canvases
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data.image_decoding import Limits
from experiments.data.jpeg_batches import JPEGDecoder
from experiments.data.shard_pairs import ArrowTexts, Decoding, ListedPairs

FILES, FACTS = "files.arrow", "files.json"


class FilePairs(ListedPairs):
    """Pairs whose images stay in their files."""

    table, settings = FILES, FACTS

    def __init__(self, folder: str | Path, decoder: JPEGDecoder | None = None) -> None:
        super().__init__(folder, decoder)
        self.paths = ArrowTexts(self._columns["path"])

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Row positions (b,) -> (b, size, size, 3) uint8.

        Raises a RuntimeError that names the file if one cannot be read or decoded.
        """
        paths = [self.paths[int(row)] for row in np.asarray(rows)]
        decoded = Decoding(self.size, self.limits, self.decoder)
        return decoded([_content(path) for path in paths], lambda i: paths[i])


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise RuntimeError(f"{path} could be read when the data were listed, and cannot now: {error}") from None


def write_files(
    folder: Path, ids: np.ndarray, paths: Sequence[str], captions: Sequence[str], size: int, limits: Limits
) -> None:
    """Write what FilePairs reads; `ids` (n,), n paths and n captions."""
    import pyarrow as pa

    texts = {"path": pa.array(paths, pa.large_string()), "caption": pa.array(captions, pa.large_string())}
    table = pa.table({"id": pa.array(ids, pa.int64()), **texts})
    FilePairs.write(folder, table, size=size, limits=vars(limits))
