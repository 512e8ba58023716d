"""Image files decoded in parts that outlive a killed or refused build.

<folder>/<first row>.npz    rows (m,), images (m, size, size, 3): those that are sound
<folder>/<first row>.json   the files' paths and stamps; issues about them

A build reads again what failed and what has changed since. It takes up the parts that an earlier build of the same
table left in its own stage folder, under another fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from experiments.data.damage import DecodeError, Issue
from experiments.data.image_decoding import Limits, decode
from experiments.data.image_files import ImageFolder
from experiments.data.pairs import Progress, counting
from experiments.runtime.process_pool import run_jobs

CHUNK = 256
_VERSION = 2  # of how pictures are decoded
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # what numpy raises for a broken .npz


class Parts:
    """The parts in `folder`, which is <stage folder>/parts; `table` tells data sets apart."""

    def __init__(self, folder: Path, images: ImageFolder, size: int, limits: Limits, table: str) -> None:
        content = json.dumps([_VERSION, asdict(images), size, asdict(limits), table])
        self._top, name = folder, hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]
        self.folder, self._images, self._size, self._limits = folder / name, images, size, limits

    def read(
        self, paths: Sequence[str | None], wanted: np.ndarray, workers: int, progress: Progress | None
    ) -> tuple[list[Issue], np.ndarray]:
        """Decode the rows of `paths` that are `wanted` (n,); issues, and (n,) whether a row is sound."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._adopt()
        jobs, done = [], 0
        for start in range(0, len(paths), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(paths)))
            rows = rows[wanted[rows]]
            files = [(int(row), paths[row], self._images.stamp(paths[row])) for row in rows]
            earlier = _load(self.folder, start)
            kept = [file for file in files if earlier.get(file[0]) == list(file[1:])]
            done += len(kept)
            jobs.append(_Job(self.folder, start, files, kept, self._images, self._size, self._limits))
        todo = [job for job in jobs if len(job.kept) < len(job.files) or not job.files]
        with counting(progress, int(wanted.sum()), "reading images") as shown:
            shown.update(done)
            for job, _ in run_jobs(_decode, todo, workers):
                shown.update(len(job.files) - len(job.kept))
        issues, sound = [], np.zeros(len(paths), dtype=bool)
        for job in jobs:
            content = json.loads(_json(self.folder, job.start).read_text())
            found = [Issue(**issue) for issue in content["issues"]]
            issues += [issue for issue in found if wanted[issue.id]]
            sound[[int(row) for row in content["files"]]] = True
        return issues, sound & wanted

    def images(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The images (m, size, size, 3) of sorted `rows`, part by part; a RuntimeError names a broken part."""
        for start in np.unique(rows // CHUNK) * CHUNK:
            file = _npz(self.folder, int(start))
            try:
                with np.load(file) as part:
                    images = part["images"][np.isin(part["rows"], rows)]
            except _BROKEN as error:
                _json(self.folder, int(start)).unlink(missing_ok=True)
                raise RuntimeError(f"{file} is broken ({error}); run again to read its images again") from None
            yield images

    def remove(self) -> None:
        """Remove this build's parts and those that ended builds have left; parts of a running build stay."""
        for sibling in self._siblings():
            with suppress(Timeout, OSError), FileLock(sibling.parent.parent.with_suffix(".lock"), timeout=0):
                shutil.rmtree(sibling, ignore_errors=True)
        shutil.rmtree(self._top)

    def _siblings(self) -> list[Path]:
        """Parts of the same data under other keys, the newest first."""
        found = self._top.parent.parent.glob(f"*.partial/{self._top.name}/{self.folder.name}")
        return sorted((path for path in found if path != self.folder), key=lambda path: -path.stat().st_mtime_ns)

    def _adopt(self) -> None:
        for sibling in self._siblings():
            for file in sorted(sibling.glob("*.npz")):
                start = int(file.stem)
                if not _json(self.folder, start).exists():
                    with suppress(OSError):  # gone meanwhile, or no links between these disks: read again
                        os.link(file, _npz(self.folder, start))
                        os.link(_json(sibling, start), _json(self.folder, start))


@dataclass(frozen=True)
class _Job:
    folder: Path
    start: int
    files: list[tuple[int, str | None, str]]  # row, path, stamp
    kept: list[tuple[int, str | None, str]]  # those of them that are sound in the part that is there
    source: ImageFolder
    size: int
    limits: Limits


def _decode(job: _Job) -> None:
    """Write a part: the .npz and then, as the mark of completion, the .json."""
    images, issues = _earlier(job, {file[0] for file in job.kept})
    for row, path, _ in job.files:
        if row in images:
            continue
        try:
            canvas = decode(job.source.read(path), job.size, job.limits)
        except DecodeError as damage:
            issues.append(asdict(Issue(row, path or "", damage.kind, damage.detail)))
            continue
        images[row] = canvas.image
        issues += [asdict(Issue(row, path or "", note, note=True)) for note in canvas.notes]
    rows = np.array(sorted(images), dtype=np.int64)
    block = np.stack([images[row] for row in rows]) if images else np.zeros((0, job.size, job.size, 3), np.uint8)
    unfinished = _npz(job.folder, job.start).with_suffix(".unfinished")
    with open(unfinished, "wb") as stream:
        np.savez(stream, rows=rows, images=block)
    _json(job.folder, job.start).unlink(missing_ok=True)
    unfinished.rename(_npz(job.folder, job.start))
    content = {
        "files": {row: [path, stamp] for row, path, stamp in job.files if row in images},
        "issues": issues,
    }
    unfinished.write_text(json.dumps(content))
    unfinished.rename(_json(job.folder, job.start))


def _earlier(job: _Job, kept: set[int]) -> tuple[dict[int, np.ndarray], list[dict[str, Any]]]:
    """Images and issues of the rows that need not be read again."""
    if not kept:
        return {}, []
    try:
        with np.load(_npz(job.folder, job.start)) as part:
            known = dict(zip(part["rows"].tolist(), part["images"], strict=True))
    except _BROKEN:  # read it all again
        return {}, []
    images = {row: image for row, image in known.items() if row in kept}
    issues = json.loads(_json(job.folder, job.start).read_text())["issues"]
    return images, [issue for issue in issues if issue["id"] in images]


def _load(folder: Path, start: int) -> dict[int, list[str | None]]:
    """Row -> path and stamp of the sound files of a part; none of one that is not whole."""
    try:
        content = json.loads(_json(folder, start).read_text())
        with np.load(_npz(folder, start)) as part:
            return {row: content["files"][str(row)] for row in part["rows"].tolist()}
    except _BROKEN:
        return {}


def _npz(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.npz"


def _json(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.json"
