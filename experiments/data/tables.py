"""`data=csv`: image files and captions named by a CSV, TSV or Parquet table, as open_clip's users have them.

A sample's id is its row in the table, so that leaving out a damaged file moves no other sample. A seeded share
of the samples whose caption names exactly one class is held out for zero-shot evaluation.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.damage import DamageReport, DecodeError, Issue
from experiments.data.image_decoding import Limits, decode
from experiments.data.pairs import (
    CAPTIONS,
    IMAGES,
    TEST,
    Progress,
    TestSet,
    counting,
    create_images,
    save_captions,
    write_images,
)
from experiments.data.test_set import caption_labels, frequent_words, prompt_templates, read_classes, seeded_shares
from experiments.runtime.process_pool import run_jobs

log = logging.getLogger(__name__)

_CHUNK = 256
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}


@dataclass(frozen=True)
class Files:
    """Image files on disk, listed in a table.

    Args:
        table: CSV, TSV or Parquet file with a row for each sample.
        size: side of the canvas in pixels.
        root: folder that the image paths are relative to and must stay in; default: the table's folder.
        img_key, caption_key: names of the columns (open_clip's defaults).
        sep: field separator of a text table; default: by the file's ending.
        classes: zero-shot classes: a file with a name on each line, a list of names, or a number: so many of
            the words that captions hold most often.
        holdout: share held out for evaluation of the samples whose caption names exactly one class; 0: none.
        max_damaged: largest share of damaged samples that is put up with.
        min_side, max_pixels: of an image.
        seed: decides what is held out.
    """

    table: str
    size: int
    root: str | None = None
    img_key: str = "filepath"
    caption_key: str = "title"
    sep: str | None = None
    classes: str | int | Sequence[str] = 20
    holdout: float = 0.1
    max_damaged: float = 0.05
    min_side: int = 8
    max_pixels: int = 89_478_485
    seed: int = 0
    name: str = "csv"  # of the data set, in tables

    def __post_init__(self) -> None:
        if not Path(self.table).is_file():
            raise ValueError(f"data.table must be a CSV, TSV or Parquet file, but there is no file {self.table!r}")
        if not self.folder.is_dir():
            raise ValueError(f"data.root must be the folder of the images, but there is no folder {self.root!r}")
        if isinstance(self.classes, str) and not Path(self.classes).is_file():
            raise ValueError(f"data.classes names a file of class names, but there is no file {self.classes!r}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout must lie in [0, 1), got {self.holdout}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"data.max_damaged must lie in [0, 1], got {self.max_damaged}")
        if self.size < 1:
            raise ValueError(f"data.size must be at least 1 pixel, got {self.size}")
        _ = self.limits

    @property
    def folder(self) -> Path:
        return Path(self.root) if self.root is not None else Path(self.table).resolve().parent

    @property
    def limits(self) -> Limits:
        return Limits(self.min_side, self.max_pixels)

    def fingerprint(self) -> str:
        """Of what the configuration only points at: the table and the file of class names."""
        digest = hashlib.sha256(Path(self.table).read_bytes())
        if isinstance(self.classes, str):
            digest.update(Path(self.classes).read_bytes())
        return digest.hexdigest()[:16]

    def read_table(self) -> tuple[list[str | None], list[str | None]]:
        """Image paths and captions, None where the table has none; a ValueError lists the columns."""
        columns = _read_columns(Path(self.table), self.sep)
        for option, key in (("img_key", self.img_key), ("caption_key", self.caption_key)):
            if key not in columns:
                near = get_close_matches(key, columns, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(
                    f"data.{option}={key!r} is no column of {self.table}; its columns: "
                    f"{', '.join(map(repr, columns))}{hint}"
                )
        paths, captions = columns[self.img_key], columns[self.caption_key]
        return [_clean(path) for path in paths], [_clean(caption) for caption in captions]

    def class_names(self, captions: Sequence[str]) -> tuple[str, ...]:
        if isinstance(self.classes, int):
            return frequent_words(captions, self.classes)
        return read_classes(self.classes)

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Decode everything into `folder` (layout: `experiments.data.pairs`; damage: `experiments.data.damage`).

        A killed build goes on where it was. Raises TooMuchDamage above `max_damaged`, with everything kept.
        """
        folder = Path(folder)
        paths, captions = self.read_table()
        if not paths:
            raise ValueError(f"data.table={self.table} has no rows")
        classes = self.class_names([caption or "" for caption in captions])
        labels = self._held_out(captions, classes)
        parts = self._prepare(folder)
        todo = []
        for begin in range(0, len(paths), _CHUNK):
            if not (parts / f"{begin:09d}.npz").exists():
                rows = slice(begin, begin + _CHUNK)
                todo.append((self, parts, begin, paths[rows], captions[rows]))
        done = len(paths) - sum(len(job[3]) for job in todo)
        with counting(progress, len(paths), "reading images") as shown:
            shown.update(done)
            for job, _ in run_jobs(_decode_chunk, todo, workers):
                shown.update(len(job[3]))
        report = DamageReport()
        for file in sorted(parts.glob("*.json")):
            content = json.loads(file.read_text())
            report.add(content["total"], (Issue(**issue) for issue in content["issues"]))
        report.finalise(folder, self.max_damaged)
        self._gather(folder, parts, captions, labels, classes)
        shutil.rmtree(parts)

    def _held_out(self, captions: Sequence[str | None], classes: Sequence[str]) -> np.ndarray:
        """(n,) class of every row that is held out for evaluation, -1 for the rows to train on."""
        labels = caption_labels([caption or "" for caption in captions], classes)
        if self.holdout == 0:
            return np.full(len(labels), -1)
        if not (labels >= 0).any():
            raise ValueError(
                f"no caption names exactly one of the {len(classes)} classes of data.classes "
                f"({', '.join(classes[:8])}, ...); give other classes, or data.holdout=0 to evaluate nothing"
            )
        held_out = seeded_shares(np.arange(len(labels)), self.seed) < self.holdout
        return np.where(held_out, labels, -1)

    def _prepare(self, folder: Path) -> Path:
        """The folder of finished chunks, emptied if the table has changed since they were made."""
        parts = folder / "parts"
        stamp = parts / "fingerprint"
        if not (stamp.exists() and stamp.read_text() == self.fingerprint()):
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir(parents=True)
            stamp.write_text(self.fingerprint())
        return parts

    def _gather(
        self, folder: Path, parts: Path, captions: list[str | None], labels: np.ndarray, classes: tuple[str, ...]
    ) -> None:
        files = sorted(parts.glob("*.npz"))
        rows = np.concatenate([np.load(file)["rows"] for file in files])
        (folder / TEST).mkdir(exist_ok=True)
        kept: dict[bool, np.ndarray] = {}
        for test, place in ((False, folder), (True, folder / TEST)):
            kept[test] = rows[(labels[rows] >= 0) == test]
            create_images(place / IMAGES, len(kept[test]), self.size)
            written = 0
            for file in files:
                with np.load(file) as chunk:
                    images = chunk["images"][(labels[chunk["rows"]] >= 0) == test]
                if len(images):
                    write_images(place / IMAGES, written, images)
                    written += len(images)
        save_captions(folder / CAPTIONS, kept[False], [captions[row] or "" for row in kept[False]])
        images = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(images, labels[kept[True]], classes, prompt_templates()).save_labels(folder / TEST)
        log.info("%d samples to train on, %d held out, %d classes", len(kept[False]), len(kept[True]), len(classes))


def _read_columns(file: Path, sep: str | None) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return pq.read_table(file).to_pydict()
        sep = sep or _SEPARATORS.get(file.suffix.lower(), ",")
        names = pyarrow.csv.open_csv(file, parse_options=_csv_options(sep)).schema.names
        as_text = pyarrow.csv.ConvertOptions(
            column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=[""],
        )  # fmt: skip
        return pyarrow.csv.read_csv(file, parse_options=_csv_options(sep), convert_options=as_text).to_pydict()
    except pa.ArrowInvalid as error:
        raise ValueError(f"data.table={file} cannot be read (data.sep={sep!r}): {error}") from None


def _csv_options(sep: str) -> Any:
    import pyarrow.csv

    return pyarrow.csv.ParseOptions(delimiter=sep, newlines_in_values=True)


def _clean(text: Any) -> str | None:
    """One line without surrounding space; None for nothing."""
    return " ".join(str(text).split()) or None if text is not None else None


_Job = tuple[Files, Path, int, list[str | None], list[str | None]]


def _decode_chunk(job: _Job) -> None:
    files, parts, begin, paths, captions = job
    root = files.folder.resolve()
    rows, images, issues = [], [], []
    for row, (path, caption) in enumerate(zip(paths, captions, strict=True), start=begin):
        try:
            if caption is None:
                raise DecodeError("missing caption")
            canvas = decode(_read(root, path, files.limits), files.size, files.limits)
        except DecodeError as damage:
            issues.append({"id": row, "source": path or "", "kind": damage.kind, "detail": damage.detail})
            continue
        rows.append(row)
        images.append(canvas.image)
        issues += [{"id": row, "source": path, "kind": note, "note": True} for note in canvas.notes]
    shape = (len(rows), files.size, files.size, 3)
    block = np.stack(images) if images else np.zeros(shape, np.uint8)
    (parts / f"{begin:09d}.json").write_text(json.dumps({"total": len(paths), "issues": issues}))
    unfinished = parts / f"{begin:09d}.unfinished"
    with open(unfinished, "wb") as stream:
        np.savez(stream, rows=np.array(rows, dtype=np.int64), images=block)
    unfinished.rename(parts / f"{begin:09d}.npz")


def _read(root: Path, path: str | None, limits: Limits) -> bytes:
    """The file's bytes; raises Damage for a path that leads out of `root`, by `..` or by a link."""
    if path is None:
        raise DecodeError("missing file", "the table names none")
    try:
        file = (root / path).resolve()
        if not file.is_relative_to(root):
            raise DecodeError("outside the folder", f"leads to {file}")
        if not file.is_file():
            raise DecodeError("missing file")
        if file.stat().st_size > limits.max_bytes:
            raise DecodeError("too large", f"{file.stat().st_size:,} bytes, more than {limits.max_bytes:,}")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise DecodeError("unreadable file", f"{type(error).__name__}: {error}") from None
