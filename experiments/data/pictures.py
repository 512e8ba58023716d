"""`data=pictures`: a folder of pictures without captions, for detectors that look at images only.

A sample's id is its file's position among all files, sorted by path; a damaged file is left out and moves no other.
"""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.data.class_folders import ENDINGS
from experiments.data.decoded_files import DecodedFiles
from experiments.data.file_pairs import STORAGE, in_array, write_files
from experiments.data.image_decoding import Limits
from experiments.data.image_files import ImageFolder
from experiments.data.pairs import CAPTIONS, IMAGES, TEST, Progress, TestSet, save_captions
from experiments.data.test_set import prompt_templates
from experiments.runtime.safe_text import printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pictures:
    """Image files in a folder and the folders below it; every caption is empty.

    Args:
        path: the folder. Hidden files and folders, and files that are no images by their names, are left out.
        size: side of the canvas in pixels.
        follow_links: whether symbolic links may lead out of `path`.
        storage, check: as in `experiments.data.folder_pairs.Folders`.
        max_damaged: largest share of damaged images that is allowed.
        min_side, max_pixels: of an image.
    """

    has_captions: ClassVar[bool] = False

    path: str
    size: int
    follow_links: bool = False
    storage: str = "auto"
    check: bool = True
    max_damaged: float = 0.05
    min_side: int = 8
    max_pixels: int = 89_478_485
    name: str = "pictures"  # of the data set, in tables

    def __post_init__(self) -> None:
        if not self.path or not Path(self.path).is_dir():
            raise ValueError(f"data.path must be a folder of pictures, but there is no folder {self.path!r}")
        if self.size < 1:
            raise ValueError(f"data.size must be at least 1 pixel, got {self.size}")
        if self.storage not in STORAGE:
            raise ValueError(f"data.storage must be one of {', '.join(STORAGE)}, got {self.storage!r}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"data.max_damaged must lie in [0, 1], got {self.max_damaged}")
        _ = self.limits
        self.files()

    @property
    def limits(self) -> Limits:
        return Limits(self.min_side, self.max_pixels)

    @property
    def images(self) -> ImageFolder:
        return ImageFolder(os.path.abspath(self.path), self.follow_links, self.limits.max_bytes)

    def files(self) -> list[str]:
        """Paths of all images below the folder, sorted."""
        paths = []
        for place, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = os.path.relpath(place, self.path)
            paths += [
                os.path.normpath(os.path.join(below, name))
                for name in names
                if name.lower().endswith(ENDINGS) and not name.startswith(".")
            ]
        if not paths:
            raise ValueError(f"data.path={self.path} holds no pictures, by the endings of its files' names")
        return sorted(paths)

    def paths_of(self, ids: np.ndarray) -> list[str]:
        """Path below the folder, printable, of the samples `ids` (n,)."""
        paths = self.files()
        return [printable(paths[id]) for id in ids.tolist()]

    def fingerprint(self) -> str:
        """Of the files' names, sizes and times."""
        images = self.images
        lines = "\n".join(f"{path} {images.stamp(path)}" for path in self.files())
        return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Decode everything, or list it (layouts: `experiments.data.pairs`, `experiments.data.file_pairs`).

        A killed build goes on where it was. Raises TooMuchDamage above `max_damaged`, with everything kept.
        """
        folder = Path(folder)
        (folder / TEST).mkdir(parents=True, exist_ok=True)
        paths = self.files()
        array = in_array(self.storage, len(paths), self.size)
        kept = np.full(len(paths), array)
        decoded = DecodedFiles(folder, self.images, paths, self.size, self.limits, kept, self.check)
        ids = decoded.read(self.max_damaged, workers, progress, "reading images")
        decoded.move(ids[:0], folder / TEST / IMAGES)
        nothing = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(nothing, np.zeros(0, np.int64), (), prompt_templates()).save_labels(folder / TEST)
        captions = [""] * len(ids)
        if array:
            decoded.move(ids, folder / IMAGES)
            save_captions(folder / CAPTIONS, ids, captions)
        else:
            places = [os.path.join(self.images.root, paths[id]) for id in ids]
            write_files(folder, ids, places, captions, self.size, self.limits)
        decoded.remove()
        log.info("%d pictures", len(ids))
