"""Pairs whose images stay in their files and are decoded on demand: data too large for one array.

files.arrow   id (int64), path, caption; memory-mapped. Of a row of a table, the path is its key
files.json    size and limits of the canvases; `rows`: of a table whose rows hold the images
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.data.damage import DecodeError
from experiments.data.image_decoding import Limits
from experiments.data.jpeg_batches import JPEGDecoder
from experiments.data.row_files import RowFiles
from experiments.data.shard_pairs import ArrowTexts, Decoding, ListedPairs

FILES, FACTS = "files.arrow", "files.json"
STORAGE = ("auto", "array", "files")
_LARGEST_ARRAY = 4 << 30  # bytes; more is decoded from the files on demand


def in_array(storage: str, n: int, size: int) -> bool:
    """Whether n canvases are decoded once, into one array; `storage`: of STORAGE, "auto" goes by their bytes."""
    return n * size**2 * 3 <= _LARGEST_ARRAY if storage == "auto" else storage == "array"


class FilePairs(ListedPairs):
    """Pairs whose images stay in their files."""

    table, settings = FILES, FACTS

    def __init__(self, folder: str | Path, decoder: JPEGDecoder | None = None) -> None:
        super().__init__(folder, decoder)
        self.paths = ArrowTexts(self._columns["path"])
        self._rows = RowFiles.of(self._facts["rows"]) if self._facts.get("rows") else None

    def contents(self, rows: np.ndarray) -> list[bytes]:
        """The image files of `rows` (b,); RuntimeError with the name of one that cannot be read."""
        contents = [b""] * len(rows)
        for place in np.argsort(rows, kind="stable").tolist():  # in the order on disk
            contents[place] = self._content(self.paths[int(rows[place])])
        return contents

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Row positions (b,) -> (b, size, size, 3) uint8.

        Raises a RuntimeError that names the file if one cannot be read or decoded.
        """
        rows = np.asarray(rows)
        decoded = Decoding(self.size, self.limits, self.decoder)
        return decoded(self.contents(rows), lambda i: self.paths[int(rows[i])])

    def _content(self, path: str) -> bytes:
        try:
            return Path(path).read_bytes() if self._rows is None else self._rows.read(path)
        except (OSError, DecodeError) as error:
            raise RuntimeError(f"{path} could be read when the data were listed, and cannot now: {error}") from None


def write_files(
    folder: Path,
    ids: np.ndarray,
    paths: Sequence[str],
    captions: Sequence[str],
    size: int,
    limits: Limits,
    rows: RowFiles | None = None,
) -> None:
    """Write what FilePairs reads; `ids` (n,), n paths and n captions. With `rows`, the paths are keys of theirs."""
    import pyarrow as pa

    texts = {"path": pa.array(paths, pa.large_string()), "caption": pa.array(captions, pa.large_string())}
    table = pa.table({"id": pa.array(ids, pa.int64()), **texts})
    rows_facts = None if rows is None else rows.facts()
    FilePairs.write(folder, table, size=size, limits=vars(limits), rows=rows_facts)
