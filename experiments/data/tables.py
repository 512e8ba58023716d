"""`data=csv`: image files and captions named by a CSV, TSV or Parquet table, as open_clip's users have them.

A sample's id is its row in the table, so that leaving out a damaged file moves no other sample. A seeded share
of the samples whose caption names exactly one class is held out for zero-shot evaluation.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.data.caption_values import clean_caption
from experiments.data.damage import DamageReport, DecodeError, Issue
from experiments.data.image_decoding import Limits
from experiments.data.image_files import ImageFolder
from experiments.data.image_parts import Parts
from experiments.data.pairs import (
    CAPTIONS,
    IMAGES,
    TEST,
    Progress,
    TestSet,
    create_images,
    save_captions,
    write_images,
)
from experiments.data.table_columns import Columns, TextFormat, read_columns
from experiments.data.test_set import frequent_words, held_out, prompt_templates, read_classes
from experiments.runtime.store import file_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """Image files on disk, listed in a table.

    Args:
        table: CSV, TSV or Parquet file with a row for each sample.
        size: side of the canvas in pixels.
        root: folder that the image paths are relative to and must stay in; default: the table's folder.
        img_key, caption_key: names of the columns (open_clip's defaults).
        sep: field separator of a text table; default: by the file's ending.
        quoting: whether double quotes enclose fields of a text table; default: unless the separator is a tab.
        encoding: of a text table; default: by its byte-order mark, else UTF-8.
        follow_links: whether symbolic links may lead out of `root`, as in Hugging Face's cache.
        classes: zero-shot classes: a file with a name on each line, a list of names, or a number: that many of
            the captions' most frequent words.
        holdout: share held out for evaluation of the samples whose caption names exactly one class; 0: none.
        max_damaged: largest share of damaged samples that is allowed.
        min_side, max_pixels: of an image.
        seed: decides what is held out.
    """

    table: str
    size: int
    root: str | None = None
    img_key: str = "filepath"
    caption_key: str = "title"
    sep: str | None = None
    quoting: bool | None = None
    encoding: str | None = None
    follow_links: bool = False
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
        _ = self.limits, self.text

    @property
    def folder(self) -> Path:
        return Path(self.root) if self.root is not None else Path(self.table).absolute().parent

    @property
    def images(self) -> ImageFolder:
        return ImageFolder(os.path.abspath(self.folder), self.follow_links, self.limits.max_bytes)

    @property
    def text(self) -> TextFormat:
        return TextFormat(self.sep, self.quoting, self.encoding)

    @property
    def limits(self) -> Limits:
        return Limits(self.min_side, self.max_pixels)

    def fingerprint(self) -> str:
        """Of what the configuration only points at: the table, the images' sizes and times, the class names."""
        digest = hashlib.sha256(file_digest(self.table).encode())
        if isinstance(self.classes, str):
            digest.update(Path(self.classes).read_bytes())
        images = self.images
        for path in self._columns().values[0]:
            digest.update(f"{images.stamp(path)}\n".encode())
        return digest.hexdigest()[:16]

    def read_table(self) -> tuple[list[str | None], list[str | None]]:
        """Image paths and captions, None where the table has none; a ValueError lists the columns."""
        rows = self._rows()
        return rows.paths, rows.captions

    def _columns(self) -> Columns:
        wanted = {"img_key": self.img_key, "caption_key": self.caption_key}
        return read_columns(Path(self.table), wanted, self.text)

    def _rows(self) -> _Rows:
        columns = self._columns()
        paths, captions = columns.values
        rows = _Rows([path if isinstance(path, str) else None for path in paths])
        for row, (path, caption) in enumerate(zip(paths, captions, strict=True)):
            try:
                if row in columns.broken:
                    raise DecodeError("broken row", columns.broken[row])
                text, notes = clean_caption(caption)
                if path is not None and not isinstance(path, str):
                    raise DecodeError("broken file name", f"no text, but of the type {type(path).__name__}")
            except DecodeError as damage:
                rows.captions.append(None)
                rows.issues.append(_issue(row, rows.paths[row], damage))
                continue
            rows.captions.append(text)
            rows.notes += [Issue(row, rows.paths[row] or "", note, note=True) for note in notes]
        return rows

    def class_names(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The zero-shot classes; none are looked for where nothing is held out."""
        if not isinstance(self.classes, int):
            return read_classes(self.classes)
        return frequent_words(captions, self.classes) if self.holdout else ()

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Decode everything into `folder` (layout: `experiments.data.pairs`; damage: `experiments.data.damage`).

        A killed build goes on where it was, and so does one after TooMuchDamage (more than `max_damaged`): what
        failed, and files that have changed, are read again.
        """
        folder = Path(folder)
        rows = self._rows()
        if not rows.paths:
            raise ValueError(f"data.table={self.table} has no rows")
        captions = [caption or "" for caption in rows.captions]
        classes = self.class_names(captions)
        labels = held_out(np.arange(len(captions)), captions, classes, self.holdout, self.seed)
        parts = Parts(folder / "parts", self.images, self.size, self.limits, os.path.abspath(self.table))
        wanted = np.array([caption is not None for caption in rows.captions])
        issues, sound = parts.read(rows.paths, wanted, workers, progress)
        report = DamageReport()
        report.add(len(rows.paths), [*rows.issues, *issues, *(note for note in rows.notes if sound[note.id])])
        report.finalise(folder, self.max_damaged)
        self._gather(folder, parts, rows.captions, np.flatnonzero(sound), labels, classes)
        parts.remove()

    def _gather(
        self,
        folder: Path,
        parts: Parts,
        captions: list[str | None],
        rows: np.ndarray,
        labels: np.ndarray,
        classes: tuple[str, ...],
    ) -> None:
        (folder / TEST).mkdir(exist_ok=True)
        kept: dict[bool, np.ndarray] = {}
        for test, place in ((False, folder), (True, folder / TEST)):
            kept[test] = rows[(labels[rows] >= 0) == test]
            create_images(place / IMAGES, len(kept[test]), self.size)
            written = 0
            for images in parts.images(kept[test]):
                write_images(place / IMAGES, written, images)
                written += len(images)
            if written != len(kept[test]):
                raise RuntimeError(f"{place / IMAGES}: {written} of {len(kept[test])} images were written")
        save_captions(folder / CAPTIONS, kept[False], [captions[row] or "" for row in kept[False]])
        images = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(images, labels[kept[True]], classes, prompt_templates()).save_labels(folder / TEST)
        log.info("%d samples to train on, %d held out, %d classes", len(kept[False]), len(kept[True]), len(classes))


@dataclass
class _Rows:
    """Of the table: parallel lists, with None for what is missing; issues and notes about captions."""

    paths: list[str | None]
    captions: list[str | None] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    notes: list[Issue] = field(default_factory=list)


def _issue(row: int, path: str | None, damage: DecodeError) -> Issue:
    return Issue(row, path or "", damage.kind, damage.detail)
