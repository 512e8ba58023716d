"""Several processes decode image files into one array, or only try them; damage is counted.

decoded.npy         (m, size, size, 3) uint8: the files to keep, in their order; a damaged one stays black
parts/<start>.json  issues of a finished chunk, so that a killed build goes on where it was
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from experiments.data.damage import DamageReport, DecodeError, Issue
from experiments.data.image_decoding import Limits, decode
from experiments.data.pairs import Progress, counting, create_images, write_images
from experiments.data.shard_damage import settle
from experiments.runtime.process_pool import run_jobs

_CHUNK = 256
_CHECKED_SIZE = 8  # pixels, of a file that is only tried: a JPEG is decoded at an eighth of its scale


class Source(Protocol):
    """Where the files lie: a folder, or the rows of a table."""

    def read(self, path: str) -> bytes:
        """A file's bytes; raises DecodeError."""


@dataclass(frozen=True)
class _Job:
    source: Source
    paths: list[str]
    slots: np.ndarray  # (b,) row of each file in decoded.npy; -1: only tried
    start: int
    folder: Path
    size: int
    limits: Limits

    @property
    def part(self) -> Path:
        return self.folder / "parts" / f"{self.start:09d}.json"


class DecodedFiles:
    """Files of `source` at `paths` (n); those of the mask `kept` (n,) are decoded.

    check: try the others too, for damage.
    ids: (n,) of the files; None: their positions in `paths`.
    unusable: (n,) bool, files that are not to be read at all, as something else is wrong with their samples.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        paths: Sequence[str],
        size: int,
        limits: Limits,
        kept: np.ndarray,
        check: bool = True,
        ids: np.ndarray | None = None,
        unusable: np.ndarray | None = None,
    ) -> None:
        self.folder, self.source, self.paths, self.size, self.limits = folder, source, list(paths), size, limits
        self.ids = np.arange(len(self.paths)) if ids is None else np.asarray(ids, np.int64)
        self.usable = np.ones(len(self.paths), dtype=bool) if unusable is None else ~unusable
        kept = kept & self.usable
        self.slots = np.where(kept, np.cumsum(kept) - 1, -1)
        self.tried = kept | (check & self.usable)

    @property
    def array(self) -> Path:
        return self.folder / "decoded.npy"

    def read(
        self,
        max_damaged: float,
        workers: int,
        progress: Progress | None,
        label: str,
        known: tuple[int, Sequence[Issue]] | None = None,
    ) -> np.ndarray:
        """Decode; returns the positions (m,) of the sound files.

        known: the number of samples, also of those without a file, and what is wrong with samples beside their
            files; None: the number of files, and nothing.
        Raises TooMuchDamage above `max_damaged`, with everything kept.
        """
        (self.folder / "parts").mkdir(parents=True, exist_ok=True)
        if not self.array.exists():
            create_images(self.array, int((self.slots >= 0).sum()), self.size)
        jobs = list(self._jobs())
        todo = [job for job in jobs if not job.part.exists()]
        total = sum(len(job.paths) for job in jobs)
        with counting(progress, total, label) as shown:
            shown.update(total - sum(len(job.paths) for job in todo))
            for job, _ in run_jobs(_decode, todo, workers):
                shown.update(len(job.paths))
        found = self._issues(jobs)
        report = DamageReport(decoded=bool(self.tried[self.usable].all()))
        report.add(*(known or (len(self.paths), ())))
        report.add(0, [dataclasses.replace(issue, id=int(self.ids[issue.id])) for issue in found])
        settle(report, self.folder, max_damaged)
        sound = self.usable.copy()
        sound[[issue.id for issue in found if not issue.note]] = False
        return np.flatnonzero(sound)

    def _jobs(self) -> list[_Job]:
        jobs = []
        for start in range(0, len(self.paths), _CHUNK):
            if self.tried[start : start + _CHUNK].any():
                chunk = slice(start, start + _CHUNK)
                paths = np.where(self.tried[chunk], self.paths[chunk], "").tolist()
                jobs.append(_Job(self.source, paths, self.slots[chunk], start, self.folder, self.size, self.limits))
        return jobs

    def _issues(self, jobs: Sequence[_Job]) -> list[Issue]:
        return [Issue(**issue) for job in jobs for issue in json.loads(job.part.read_text())]

    def move(self, rows: np.ndarray, file: Path) -> None:
        """Copy the canvases of the kept files at the positions `rows` into an array of their own."""
        create_images(file, len(rows), self.size)
        images = np.load(self.array, mmap_mode="r")
        for start in range(0, len(rows), 4096):
            write_images(file, start, images[self.slots[rows[start : start + 4096]]])

    def remove(self) -> None:
        """Remove the files that only the decoding needed."""
        self.array.unlink()
        shutil.rmtree(self.folder / "parts")


def _decode(job: _Job) -> None:
    issues = []
    kept = job.slots[job.slots >= 0]  # consecutive
    images = np.zeros((len(kept), job.size, job.size, 3), dtype=np.uint8)
    for i, (path, slot) in enumerate(zip(job.paths, job.slots.tolist(), strict=True)):
        if not path:
            continue
        try:
            canvas = decode(job.source.read(path), job.size if slot >= 0 else _CHECKED_SIZE, job.limits)
        except DecodeError as damage:
            issues.append(Issue(job.start + i, path, damage.kind, damage.detail))
            continue
        if slot >= 0:
            images[slot - kept[0]] = canvas.image
        issues += [Issue(job.start + i, path, note, note=True) for note in canvas.notes]
    if len(kept):
        write_images(job.folder / "decoded.npy", int(kept[0]), images)
    unfinished = job.part.with_suffix(".unfinished")
    unfinished.write_text(json.dumps([dataclasses.asdict(issue) for issue in issues]))
    unfinished.rename(job.part)
