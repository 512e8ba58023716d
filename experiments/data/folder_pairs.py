"""`data=folders`: a folder of class folders as image-caption pairs, with captions drawn from the class names.

A sample's id is its file's position among all files, sorted by class and name; a damaged file is left out and moves
no other. Its caption is drawn from (seed, class folder, file name) alone, so that further files change none.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from experiments.data.class_folders import ClassFolders
from experiments.data.decoded_files import DecodedFiles
from experiments.data.file_pairs import STORAGE, in_array, write_files
from experiments.data.image_decoding import Limits
from experiments.data.pairs import CAPTIONS, IMAGES, TEST, Progress, TestSet, save_captions
from experiments.data.test_set import prompt_templates, seeded_shares, text_lines
from experiments.runtime.safe_text import printable

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folders(ClassFolders):
    """A folder of class folders, each image with a caption that names its class.

    Args:
        path, size, classes, per_class, max_damaged: as in `experiments.data.class_folders.ClassFolders`.
        captions: "openai": one of open_clip's 80 ImageNet templates, drawn for each image; "names": the class name
            alone; or a file with a template on each line, `{}` in the place of the class name.
        synonyms: a file with other names of classes, `folder or class name<TAB>synonym<TAB>synonym ...`.
        synonym_share: probability that a caption uses one of its class's synonyms, where it has any.
        holdout: share of the images held out for zero-shot evaluation; 0: none, as with `eval=folders`.
        storage: "array": all images decoded once, into one array; "files": decoded on demand; "auto": an array of
            up to 4 GB, else files.
        check: decode images that stay in their files once beforehand, so that damage is found before training.
        min_side, max_pixels: of an image.
        seed: decides captions, and what is held out.
    """

    group: ClassVar[str] = "data"

    captions: str = "openai"
    synonyms: str | None = None
    synonym_share: float = 0.2
    holdout: float = 0.0
    storage: str = "auto"
    check: bool = True
    min_side: int = 8
    max_pixels: int = 89_478_485
    seed: int = 0
    name: str = "folders"  # type: ignore[misc]  # of the data set, in tables

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"data.size must be at least 1 pixel, got {self.size}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout must lie in [0, 1), got {self.holdout}")
        if not 0 <= self.synonym_share <= 1:
            raise ValueError(f"data.synonym_share must lie in [0, 1], got {self.synonym_share}")
        if self.storage not in STORAGE:
            raise ValueError(f"data.storage must be one of {', '.join(STORAGE)}, got {self.storage!r}")
        _ = self.limits
        self.templates()
        self.class_synonyms()

    @property
    def limits(self) -> Limits:
        return Limits(self.min_side, self.max_pixels)

    def templates(self) -> tuple[str, ...]:
        """Caption templates with one `{}` for the class name."""
        if self.captions == "openai":
            return prompt_templates()
        if self.captions == "names":
            return ("{}",)
        if not Path(self.captions).is_file():
            raise ValueError(
                "data.captions must be openai, names or a file of templates, but there is no file "
                f"{self.captions!r}; pictures without captions are data=pictures"
            )
        templates = tuple(_lines(Path(self.captions)))
        wrong = [template for template in templates if template.count("{}") != 1]
        if wrong or not templates:
            raise ValueError(
                f"data.captions={self.captions}: each line must hold one '{{}}' for the class name, "
                f"got {wrong[0] if wrong else 'no line'!r}"
            )
        return templates

    def class_synonyms(self) -> tuple[tuple[str, ...], ...]:
        """The synonyms of each class, in the order of `folders()`."""
        folders, names = self.folders(), self.names()
        found: dict[int, tuple[str, ...]] = {}
        if self.synonyms is None:
            return ((),) * len(names)
        if not Path(self.synonyms).is_file():
            raise ValueError(f"data.synonyms must be a file, but there is no file {self.synonyms!r}")
        for line in _lines(Path(self.synonyms)):
            key, *others = (" ".join(part.split()) for part in line.split("\t"))
            labels = [label for label, known in enumerate(zip(folders, names, strict=True)) if key in known]
            if not labels or not all(others) or not others:
                raise ValueError(
                    f"data.synonyms={self.synonyms}: each line must be `folder or class name<TAB>synonym"
                    f"<TAB>synonym ...`, of a class of data.path, got {line!r}"
                )
            taken = [other for other in others if other in names]
            if taken:
                raise ValueError(f"data.synonyms={self.synonyms}: {taken[0]!r} is the name of a class")
            found.update(dict.fromkeys(labels, tuple(others)))
        return tuple(found.get(label, ()) for label in range(len(names)))

    def draw_captions(self, paths: Sequence[str], labels: np.ndarray) -> list[str]:
        """The caption of each file; `labels` (n,) are positions in `names()`."""
        names, synonyms, templates = self.names(), self.class_synonyms(), self.templates()
        captions = []
        for path, label in zip(paths, labels.tolist(), strict=True):
            place = Path(path).as_posix()
            # Eight bytes for each of three choices: of a template, of the name or a synonym, of a synonym.
            drawn = hashlib.sha256(f"{self.seed} {place}".encode("utf-8", "surrogateescape")).digest()
            template, share, which = (int.from_bytes(drawn[8 * i : 8 * i + 8]) for i in range(3))
            name, others = names[label], synonyms[label]
            if others and share < self.synonym_share * 2**64:
                name = others[which % len(others)]
            captions.append(templates[template % len(templates)].replace("{}", name))
        return captions

    def paths_of(self, ids: np.ndarray) -> list[str]:
        """Path below the folder, printable, of the samples `ids` (n,)."""
        paths, _ = self.files()
        return [printable(paths[id]) for id in ids.tolist()]

    def fingerprint(self) -> str:
        """Digest of the files' names, sizes and times, the class names, the templates and the synonyms."""
        parts = [super().fingerprint(), *self.templates(), *("\t".join(others) for others in self.class_synonyms())]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Decode everything, or list it (layouts: `experiments.data.pairs`, `experiments.data.file_pairs`).

        A killed build goes on where it was. Raises TooMuchDamage above `max_damaged`, with everything kept.
        """
        folder = Path(folder)
        (folder / TEST).mkdir(parents=True, exist_ok=True)
        paths, labels = self.files()
        captions = self.draw_captions(paths, labels)
        held_out = seeded_shares(np.arange(len(paths)), self.seed) < self.holdout
        array = in_array(self.storage, len(paths), self.size)
        decoded = DecodedFiles(folder, self.images, paths, self.size, self.limits, held_out | array, self.check)
        sound = decoded.read(self.max_damaged, workers, progress, "reading images")
        ids, test = sound[~held_out[sound]], sound[held_out[sound]]
        decoded.move(test, folder / TEST / IMAGES)
        images = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(images, labels[test], self.names(), prompt_templates()).save_labels(folder / TEST)
        mine = [captions[row] for row in ids]
        if array:
            decoded.move(ids, folder / IMAGES)
            save_captions(folder / CAPTIONS, ids, mine)
        else:
            kept = [os.path.join(self.images.root, paths[row]) for row in ids]
            write_files(folder, ids, kept, mine, self.size, self.limits)
        decoded.remove()
        log.info("%d samples to train on, %d held out, %d classes", len(ids), len(test), len(self.names()))


def _lines(file: Path) -> list[str]:
    """Lines that are neither empty nor a comment, without surrounding space."""
    return [line for line in text_lines(file) if line and not line.startswith("#")]
