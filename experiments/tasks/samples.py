"""The samples of one runner, or of several that share a model, as one sequence of rows.

Embeddings stay memory-mapped: only the rows and blocks asked for are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from detect.embeddings import unit
from experiments.pipeline.runner import Runner

BLOCK = 65_536


class Samples:
    """n samples in rows; `ids` tells them apart across all parts.

    shifts: what to add to the ids of each part's own samples.
    """

    def __init__(self, runners: Sequence[Runner], shifts: Sequence[int]) -> None:
        self._pairs = [runner.value("pairs") for runner in runners]
        self.ids = np.concatenate(
            [np.asarray(pairs.ids) + shift for pairs, shift in zip(self._pairs, shifts, strict=True)]
        )
        self.captions: list[str] = [caption for pairs in self._pairs for caption in pairs.captions]
        self._starts = np.cumsum([0, *(len(pairs) for pairs in self._pairs)])
        self._arrays = {
            kind: [np.load(runner.entry("embeddings").path / f"{kind}.npy", mmap_mode="r") for runner in runners]
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
        """Each row's k most similar other rows, with their cosine: for the eye, no detector uses it."""
        asked = np.asarray(rows, np.int64)
        queries = self.vectors("image", asked)
        best = np.full((len(asked), 0), -2.0, np.float32)
        where = np.zeros((len(asked), 0), np.int64)
        for begin, block in self.blocks("image"):
            similar = queries @ block.T
            columns = np.arange(begin, begin + len(block))
            similar[columns[None, :] == asked[:, None]] = -2  # not itself
            best = np.concatenate([best, similar], axis=1)
            where = np.concatenate([where, np.broadcast_to(columns, similar.shape)], axis=1)
            top = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best, where = np.take_along_axis(best, top, 1), np.take_along_axis(where, top, 1)
        return {
            int(row): [(int(w), float(b)) for w, b in zip(where[i], best[i], strict=True)]
            for i, row in enumerate(asked)
        }

    def _split(self, rows: np.ndarray) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        part = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(part):
            where = np.flatnonzero(part == number)
            yield int(number), (where, rows[where] - self._starts[number])
