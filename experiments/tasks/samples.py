"""The samples of one runner, or of several that share a model, as one sequence of rows.

Embeddings stay memory-mapped: only the rows and blocks asked for are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from detect.embeddings import unit
from detect.search.cosine import most_similar
from experiments.pipeline.runner import Runner

BLOCK = 65_536


class Samples:
    """n samples in rows; `ids` tells them apart across all parts.

    shifts: what to add to the ids of each part's own samples.
    folders: of the parts' embeddings, in order.  sources: the parts' data configurations.
    """

    def __init__(self, runners: Sequence[Runner], shifts: Sequence[int]) -> None:
        self._pairs = [runner.value("pairs") for runner in runners]
        self.ids = np.concatenate(
            [np.asarray(pairs.ids) + shift for pairs, shift in zip(self._pairs, shifts, strict=True)]
        )
        self.captions: list[str] = [caption for pairs in self._pairs for caption in pairs.captions]
        self._starts = np.cumsum([0, *(len(pairs) for pairs in self._pairs)])
        self.sources = [runner.experiment.source for runner in runners]
        self.folders = [runner.entry("embeddings").path for runner in runners]
        self._arrays = {
            kind: [np.load(folder / f"{kind}.npy", mmap_mode="r") for folder in self.folders]
            for kind in ("image", "text")
        }

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b,) -> (b, size, size, 3) uint8."""
        rows = np.asarray(rows)
        size = self._pairs[0].size
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for part, (where, own) in self._split(rows):
            images[where] = self._pairs[part].images(own)
        return images

    def vectors(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Unit-length embeddings (b, d) of rows (b,); kind: image or text."""
        rows = np.asarray(rows)
        arrays = self._arrays[kind]
        found = np.empty((len(rows), arrays[0].shape[1]), np.float32)
        for part, (where, own) in self._split(rows):
            found[where] = arrays[part][own]
        return unit(found)

    def blocks(self, kind: str, size: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
        """All unit-length embeddings, (first row, (b, d)) at a time."""
        for start, array in zip(self._starts[:-1], self._arrays[kind], strict=True):
            for begin in range(0, len(array), size):
                yield int(start) + begin, unit(np.asarray(array[begin : begin + size], np.float32))

    def nearest(self, rows: Sequence[int], k: int) -> dict[int, list[tuple[int, float]]]:
        """The k most similar other rows of each row, with their cosine: for the pages, no detector uses it."""
        queries = self.vectors("image", np.asarray(rows, np.int64))
        found = most_similar(queries, self.blocks("image"), k, [np.array([row]) for row in rows])
        return {
            int(row): list(zip(near.tolist(), cosines.tolist(), strict=True))
            for row, (near, cosines) in zip(rows, found, strict=True)
        }

    def _split(self, rows: np.ndarray) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        part = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(part):
            where = np.flatnonzero(part == number)
            yield int(number), (where, rows[where] - self._starts[number])
