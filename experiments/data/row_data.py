"""`data=parquet`: images and captions in the rows of Parquet files, as Hugging Face's data sets have them.

Nothing is unpacked: captions are read in a stream, images by row, each row group once where rows are read in order.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from experiments.data.cleaned_folder import refuse_unfinished
from experiments.data.damage import LIST, DecodeError
from experiments.data.decoded_files import DecodedFiles
from experiments.data.file_pairs import STORAGE, in_array, write_files
from experiments.data.image_decoding import Limits
from experiments.data.pairs import CAPTIONS, IMAGES, TEST, Progress, TestSet, save_captions
from experiments.data.row_columns import KNOWN, choose, known_columns, known_value
from experiments.data.row_files import RowFiles
from experiments.data.row_listing import RowIds, count_rows, read_captions
from experiments.data.row_readers import BrokenFile, open_rows
from experiments.data.shard_damage import within
from experiments.data.shard_pairs import file_stamp, is_remote
from experiments.data.shard_urls import PARQUET, expand
from experiments.data.test_set import frequent_words, held_out, prompt_templates, read_classes
from experiments.runtime.safe_text import printable

log = logging.getLogger(__name__)

_SPLITS = ("train", "test", "validation", "val", "dev")


@dataclass(frozen=True)
class RowData:
    """Rows with an image and a caption each; what data=parquet and data=hf have in common.

    Args:
        size: side of the canvas in pixels.
        img_key, caption_key: columns of the image and the caption; None: by their names and types. "none" as
            caption_key: pictures alone, for detectors that look at images only.
        root: folder that paths of images are relative to and must stay in; None: that of the file that names them.
        follow_links: whether symbolic links may lead out of the folders.
        subset: number of samples, drawn by `seed`; None: all.
        classes, holdout: as in `experiments.data.tables.Files`; `max_test` bounds what is held out.
        storage, check: as in `experiments.data.folder_pairs.Folders`.
        max_damaged: largest share of damaged samples that is allowed.
        min_side, max_pixels: of an image.
        seed: decides the subset and what is held out.
    """

    group: ClassVar[str] = "data"

    path: str | Sequence[str]
    size: int
    img_key: str | None = None
    caption_key: str | None = None
    root: str | None = None
    follow_links: bool = False
    subset: int | None = None
    classes: str | int | Sequence[str] = 20
    holdout: float = 0.02
    max_test: int = 5000
    storage: str = "auto"
    check: bool = True
    max_damaged: float = 0.05
    min_side: int = 8
    max_pixels: int = 89_478_485
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout must lie in [0, 1), got {self.holdout}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"data.max_damaged must lie in [0, 1], got {self.max_damaged}")
        if self.subset is not None and self.subset < 1:
            raise ValueError(f"data.subset must be at least 1, got {self.subset}")
        if self.size < 1:
            raise ValueError(f"data.size must be at least 1 pixel, got {self.size}")
        if self.storage not in STORAGE:
            raise ValueError(f"data.storage must be one of {', '.join(STORAGE)}, got {self.storage!r}")
        if isinstance(self.classes, str) and not Path(self.classes).is_file():
            raise ValueError(f"data.classes names a file of class names, but there is no file {self.classes!r}")
        if self.root is not None and not Path(self.root).is_dir():
            raise ValueError(f"data.root must be the folder of the images, but there is no folder {self.root!r}")
        self.columns()
        _ = self.limits

    @property
    def limits(self) -> Limits:
        return Limits(self.min_side, self.max_pixels)

    @property
    def has_captions(self) -> bool:
        return self.columns()[1] is not None

    def files(self) -> list[str]:
        """All files, in order, as absolute paths."""
        raise NotImplementedError

    def columns(self) -> tuple[str, str | None]:
        """The columns of the image and of the caption, by the first file that can be read; raises ValueError."""
        files, reasons = self.files(), []
        for path in files:
            try:
                schema = open_rows(path).schema
            except BrokenFile as error:
                reasons.append(f"{path}: {error}")
                continue
            return choose(schema, os.path.basename(path), self.img_key, self.caption_key)
        raise ValueError(f"data.path={self._given} names {len(files)} files that cannot be read: {reasons[0]}")

    @property
    def _given(self) -> str:
        text = repr(self.path if isinstance(self.path, str) else list(self.path))
        return text if len(text) <= 300 else f"{text[:200]} ... {text[-60:]}"

    def open(self) -> RowFiles:
        """The files as they are now."""
        files = self.files()
        root = None if self.root is None else os.path.abspath(self.root)
        stamps = tuple(map(file_stamp, files))
        return RowFiles(tuple(files), self.columns()[0], root, self.follow_links, self.limits.max_bytes, stamps)

    def fingerprint(self) -> str:
        """Of the files' names, sizes and times, of the images that they only name, and of the class names."""
        rows = self.open()
        digest = hashlib.sha256()
        for number, (name, path) in enumerate(zip(rows.names, rows.paths, strict=True)):
            digest.update(f"{name} {file_stamp(path)}\n".encode(errors="surrogateescape"))
            images = rows.folder(number)
            for image in rows.image_paths(number):
                if stamp := images.stamp(image):
                    digest.update(f"{stamp}\n".encode())
        if isinstance(self.classes, str):
            digest.update(Path(self.classes).read_bytes())
        return digest.hexdigest()[:16]

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Decode everything, or list it (layouts: `experiments.data.pairs`, `experiments.data.file_pairs`).

        A killed build goes on where it was. Raises TooMuchDamage above `max_damaged`, with everything kept.
        """
        folder = Path(folder)
        (folder / TEST).mkdir(parents=True, exist_ok=True)
        rows = self.open()
        caption = self.columns()[1]
        counts, issues = count_rows(rows, self._wanted())
        index = RowIds(rows.paths, counts)
        captions: list[str | None] = [""] * len(index.all)
        if caption is not None:
            captions, found = read_captions(rows, caption, counts, index.all, progress)
            issues += found
        if not captions:
            raise ValueError(f"data.path={self._given} has no rows that can be read")
        chosen = np.flatnonzero(np.isin(index.all, self._choose(index.all)))
        ids = index.all[chosen]
        texts = [captions[row] or "" for row in chosen]
        unusable = np.array([captions[row] is None for row in chosen], dtype=bool)
        classes = self._classes(texts)
        labels = held_out(ids, texts, classes, self.holdout if classes else 0.0, self.seed, self.max_test)
        array = in_array(self.storage, len(ids), self.size)
        keys = rows.keys(*index.locate(ids))
        kept = (labels >= 0) | array
        decoded = DecodedFiles(folder, rows, keys, self.size, self.limits, kept, self.check, ids, unusable)
        known = within(issues, ids, np.array(counts))
        sound = decoded.read(self.max_damaged, workers, progress, "reading images", known)
        if not len(sound):
            raise ValueError(f"data.path={self._given} holds no usable sample; all are listed in {folder / LIST}")
        train, test = sound[labels[sound] < 0], sound[labels[sound] >= 0]
        decoded.move(test, folder / TEST / IMAGES)
        images = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(images, labels[test], classes, prompt_templates()).save_labels(folder / TEST)
        mine = [texts[row] for row in train]
        if array:
            decoded.move(train, folder / IMAGES)
            save_captions(folder / CAPTIONS, ids[train], mine)
        else:
            write_files(folder, ids[train], [keys[row] for row in train], mine, self.size, self.limits, rows)
        decoded.remove()
        log.info("%d samples to train on, %d held out, in %d files", len(train), len(test), len(rows.paths))

    def _classes(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The zero-shot classes; none are looked for where nothing is held out."""
        if self.holdout == 0 or not self.has_captions:
            return ()
        return (
            frequent_words(captions, self.classes) if isinstance(self.classes, int) else read_classes(self.classes)
        )

    def _wanted(self) -> list[str]:
        """The columns that a file must have."""
        return [name for name in self.columns() if name is not None]

    def _choose(self, ids: np.ndarray) -> np.ndarray:
        """Sorted ids of the subset, damaged ones among them."""
        if self.subset is None or self.subset == len(ids):
            return np.sort(ids)
        if self.subset > len(ids):
            raise ValueError(f"data.subset={self.subset} is more than the {len(ids)} rows of the files")
        return np.sort(np.random.default_rng(self.seed).choice(np.sort(ids), self.subset, replace=False))

    # --- where samples come from --------------------------------------------------------------------------------

    def _index(self, rows: RowFiles) -> RowIds:
        return RowIds(rows.paths, count_rows(rows, self._wanted())[0])

    def members(self, folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
        """Sorted ids of all samples, damaged ones too, and of the subset."""
        ids = self._index(self.open()).all
        return np.sort(ids), self._choose(ids)

    def known(self, ids: np.ndarray) -> dict[str, list[Any]]:
        """What is known about the samples `ids` (n,): `shard`, the file, and what the columns of `KNOWN` hold.

        A sample without a key in the table has its row as the key.
        """
        rows = self.open()
        files, places = self._index(rows).locate(ids)
        found: dict[str, list[Any]] = {name: [None] * len(ids) for name in KNOWN}
        for number in np.unique(files).tolist():
            mine = np.flatnonzero(files == number)
            wanted = dict(zip(places[mine].tolist(), mine.tolist(), strict=True))
            columns = known_columns(rows.schema(number))
            for block in rows.blocks(number, sorted(set(columns.values()))) if columns else ():
                inside = [row for row in range(block.length) if block.begin + row in wanted]
                for row, (what, column) in itertools.product(inside, columns.items()):
                    with suppress(DecodeError):
                        value = known_value(what, block.cell(column, row), column)
                        found[what][wanted[block.begin + row]] = value
        keys = [key or str(row) for key, row in zip(found.pop("key"), places.tolist(), strict=True)]
        return {"key": keys, "shard": [printable(rows.names[number]) for number in files], **found}

    def contents(self, ids: np.ndarray) -> Iterator[bytes | None]:
        """The image file of each of the samples `ids` (n,), None for one that cannot be read."""
        rows = self.open()
        for key in rows.keys(*self._index(rows).locate(ids)):
            try:
                yield rows.read(key)
            except DecodeError:
                yield None


@dataclass(frozen=True)
class Parquet(RowData):
    """Parquet files.

    path: a file, a folder, a glob, a brace pattern, several of these joined by `::`, or a list of them. A folder
        stands for its Parquet files, or for those in the folders below if it has none.
    """

    path: str | Sequence[str]
    name: str = "parquet"  # of the data set, in tables

    def files(self) -> list[str]:
        given = [self.path] if isinstance(self.path, str) else list(self.path)
        if remote := [pattern for pattern in given if is_remote(pattern)]:
            raise ValueError(f"data.path={remote[0]!r} is not local: fetch the Parquet files first (docs/data.md)")
        files = [file for pattern in given for file in expand(pattern, self.follow_links, PARQUET)]
        if not files:
            raise ValueError("data.path must name Parquet files, got an empty list")
        if len(set(files)) < len(files):
            twice = next(file for file, count in Counter(files).items() if count > 1)
            raise ValueError(f"data.path names {twice} twice")
        if not any(map(os.path.exists, files)):
            raise ValueError(f"data.path={self._given} names {len(files)} files, but none of them exists")
        return refuse_unfinished(files, "data.path")

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        parts = [set(re.split(r"[^a-z]+", file.lower())) for file in self.files()]
        splits = [split for split in _SPLITS if any(split in words for words in parts)]
        if len(splits) > 1 and all(words.intersection(splits) for words in parts):
            log.warning("data.path names files of several splits (%s); all are read", ", ".join(splits))
        super().build(folder, workers, progress)
