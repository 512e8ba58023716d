"""`eval=imagenet` and `eval=folders`: a folder that holds one folder of images for each class.

Built like a data stage: `build(folder)` decodes everything into `folder`/test, and
`experiments.data.pairs.open_test(folder)` reads it. `data=folders` reads such folders as training pairs
(`experiments.data.folder_pairs`).
"""

from __future__ import annotations

import hashlib
import os
import runpy
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.data.decoded_files import DecodedFiles
from experiments.data.image_decoding import FORMATS, Limits
from experiments.data.image_files import ImageFolder
from experiments.data.pairs import IMAGES, TEST, Progress, TestSet
from experiments.data.test_set import prompt_templates, text_lines

ENDINGS = tuple("." + ending.lower() for ending in (*FORMATS, "jpg", "tif"))
"""Of the names of files that are taken for images."""


@dataclass(frozen=True)
class Builtin:
    """`eval=builtin`: the test set that the data bring along; nothing to build."""

    name = "builtin"


@dataclass(frozen=True)
class ClassFolders:
    """A folder of class folders.

    Args:
        path: the folder; its folders are the classes, in sorted order. The images lie in them, or in a folder
            `images` inside, as in Tiny-ImageNet.
        size: side of the canvas in pixels.
        classes: "imagenet": the folders are WordNet ids and get open_clip's class names; or a file with a line
            for each class, `folder name<TAB>class name`, or class names alone in the folders' order;
            None: the folders' own names, `_` read as a space.
        per_class: number of images of each class, the first by name; None: all.
        max_damaged: largest share of damaged images that is allowed.
        follow_links: whether symbolic links may lead out of `path`.
    """

    group: ClassVar[str] = "eval"  # of the configuration, which messages name

    path: str
    size: int
    classes: str | None = None
    per_class: int | None = None
    max_damaged: float = 0.05
    follow_links: bool = False

    def __post_init__(self) -> None:
        if not self.path or not Path(self.path).is_dir():
            wanted = "ImageNet's validation images" if self.classes == "imagenet" else "class folders"
            others = (
                "; give eval.path=FOLDER, or choose eval=builtin (pictures that the data hold out, whose figures "
                "are not ImageNet's) or eval=folders (class folders of your own)"
            )
            raise ValueError(
                f"{self.group}.path must be a folder of {wanted}, but there is no folder {self.path!r}"
                f"{others if self.group == 'eval' else ''}"
            )
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"{self.group}.per_class must be at least 1, got {self.per_class}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"{self.group}.max_damaged must lie in [0, 1], got {self.max_damaged}")
        self.names()

    @property
    def images(self) -> ImageFolder:
        return ImageFolder(os.path.abspath(self.path), self.follow_links, Limits().max_bytes)

    @property
    def name(self) -> str:
        """What figures were measured on, for rows: `imagenet` is all of ImageNet's classes and images."""
        if self.classes != "imagenet":
            folder = Path(self.path).resolve()
            return (folder.parent if folder.name in ("train", "test", "val") else folder).name
        part = len(self.folders()) < len(_wordnet_ids()) or self.per_class is not None
        return "imagenet, a part" if part else "imagenet"

    def folders(self) -> list[str]:
        """The class folders' names, sorted."""
        with os.scandir(self.path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        if len(names) < 2:
            raise ValueError(
                f"{self.group}.path={self.path} must hold one folder of images for each class, but holds "
                f"{len(names)} folders. ImageNet's validation images come in one flat folder: sort them into 1000 "
                "folders named by WordNet id first (docs/data.md)"
            )
        return names

    def names(self) -> tuple[str, ...]:
        """The class names, in the order of `folders()`."""
        folders = self.folders()
        if self.classes is None:
            return self._distinct(tuple(" ".join(name.replace("_", " ").split()) for name in folders))
        if self.classes == "imagenet":
            known = dict(zip(_wordnet_ids(), _imagenet_names(), strict=True))
            where = "ImageNet's WordNet ids"
        else:
            known = _read_names(Path(self.classes), folders, f"{self.group}.classes")
            where = self.classes
        missing = [name for name in folders if name not in known]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(folders)} folders of {self.group}.path={self.path} are not among {where}: "
                f"{', '.join(missing[:5])}"
            )
        names = tuple(known[name] for name in folders)
        return names if self.classes == "imagenet" else self._distinct(names)  # a few of ImageNet's share a name

    def _distinct(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """`names` of the folders; a ValueError if one is empty, cannot be written, or is that of two folders."""
        source = f"{self.group}.classes={self.classes}" if self.classes else f"{self.group}.path={self.path}"
        for folder, name in zip(self.folders(), names, strict=True):
            if not name or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
                raise ValueError(
                    f"{source} gives the folder {folder!r} the class name {name!r}, which is no text; give "
                    f"{self.group}.classes, a file of class names"
                )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{source} gives two folders the same class name: {', '.join(twice)}")
        return names

    def files(self) -> tuple[list[str], np.ndarray]:
        """Paths of all images, below the folder, and their labels (n,). Hidden files are left out."""
        paths, labels = [], []
        for label, name in enumerate(self.folders()):
            inside = Path(self.path) / name
            places = ["", "images"] if (inside / "images").is_dir() else [""]
            found = sorted(
                os.path.join(place, file.name)
                for place in places
                for file in (inside / place).iterdir()
                if file.suffix.lower() in ENDINGS and not file.name.startswith(".")  # such as macOS's ._1.jpg
            )[: self.per_class]
            paths += [os.path.join(name, file) for file in found]
            labels += [label] * len(found)
        if not paths:
            raise ValueError(f"no image files in the folders of {self.group}.path={self.path}")
        return paths, np.array(labels, dtype=np.int64)

    def fingerprint(self) -> str:
        """Names, sizes and times of the files, and the class names: the configuration only points at these."""
        lines = [f"{path} {self.images.stamp(path)}" for path in self.files()[0]]
        content = "\n".join([*lines, *self.names()])
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Decode everything into `folder`; damaged images are left out and listed."""
        folder = Path(folder)
        (folder / TEST).mkdir(parents=True, exist_ok=True)
        paths, labels = self.files()
        decoded = DecodedFiles(folder, self.images, paths, self.size, Limits(), np.ones(len(paths), dtype=bool))
        sound = decoded.read(self.max_damaged, workers, progress, "reading evaluation images")
        decoded.move(sound, folder / TEST / IMAGES)
        kept = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(kept, labels[sound], self.names(), prompt_templates()).save_labels(folder / TEST)
        decoded.remove()


def _read_names(file: Path, folders: Sequence[str], option: str) -> dict[str, str]:
    if not file.is_file():
        raise ValueError(
            f"{option} must be 'imagenet' or a file of class names, but there is no file {str(file)!r}"
        )
    lines = [line for line in text_lines(file) if line and not line.startswith("#")]
    if any("\t" in line for line in lines):
        pairs = [line.split("\t") for line in lines]
        wrong = [line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2]
        if wrong:
            raise ValueError(f"{file}: every line must be `folder<TAB>class name`, got {wrong[0]!r}")
        return {folder.strip(): name.strip() for folder, name in pairs}
    if len(lines) != len(folders):
        raise ValueError(f"{file} has {len(lines)} class names for {len(folders)} folders")
    return dict(zip(folders, lines, strict=True))


def _wordnet_ids() -> list[str]:
    """ImageNet's 1000 WordNet ids in the order of the classes, which timm brings along."""
    return (_package("timm") / "data/_info/imagenet_synsets.txt").read_text().split()


def _imagenet_names() -> list[str]:
    """open_clip's IMAGENET_CLASSNAMES, without the ten seconds that importing open_clip takes."""
    return runpy.run_path(str(_package("open_clip") / "zero_shot_metadata.py"))["IMAGENET_CLASSNAMES"]


def _package(name: str) -> Path:
    found = find_spec(name)
    if found is None or found.origin is None:
        raise ValueError(f"eval.classes=imagenet needs the package {name}, which is not installed")
    return Path(found.origin).parent
