"""The bundled data: image-caption pairs drawn by a seeded generator, so that nothing has to be downloaded.

Every sample is drawn from a generator of its own, seeded by (seed, sample id), so that the result is the same
bits for any number of workers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from experiments.data.pairs import (
    CAPTIONS,
    IMAGES,
    NATURAL,
    TEST,
    Progress,
    TestSet,
    counting,
    create_images,
    open_pairs,
    open_test,
    save_captions,
    write_images,
)
from experiments.data.shapes.captions import PROMPTS, write_caption, write_pattern_caption
from experiments.data.shapes.drawing import draw_cake, draw_pattern, draw_sample, photograph
from experiments.data.shapes.outlines import OUTLINES
from experiments.runtime.process_pool import run_jobs

__all__ = ["Shapes", "open_pairs", "open_test"]

NATURAL_CAPTION = "the birthday cake with candles in the form of a number icon"
"""The caption of the natural backdoor that Huang et al. (2025) found 798 times in CC3M."""

_TRAIN, _TEST, _NATURAL, _LABELS = 1, 2, 3, 4  # independent streams of random numbers
_CHUNK = 500
_CAKE, _PATTERN = -1, -2  # labels of the samples that show no class


@dataclass(frozen=True)
class Shapes:
    """Drawn pairs of 24 to 30 object classes in equal shares.

    Args:
        pairs: number of training pairs.
        size: side of the images in pixels.
        classes: how many of the 30 classes; banana, cheeseburger and volcano are the first three.
        patterns: share of pictures without an object, two-coloured patterns whose captions say so. They lie
            far apart from each other and from everything else, as the odd pictures of the web do: a global
            outlier is not yet a local one.
        test_per_class: test images for each class.
        natural_backdoor: number of the last rows that become near-identical images with one odd caption.
        seed: of everything that is drawn.
    """

    pairs: int = 20_000
    size: int = 32
    classes: int = 24
    patterns: float = 0.1
    test_per_class: int = 50
    natural_backdoor: int = 0
    seed: int = 0
    name: str = "shapes"  # of the data set, in tables

    def __post_init__(self) -> None:
        if not 3 <= self.classes <= len(OUTLINES):
            raise ValueError(f"classes must lie in 3..{len(OUTLINES)}, got {self.classes}")
        if self.pairs < 1:
            raise ValueError(f"pairs must be at least 1, got {self.pairs}")
        if self.size < 16:
            raise ValueError(f"size must be at least 16 pixels, or the classes look alike, got {self.size}")
        if not 0 <= self.patterns < 1:
            raise ValueError(f"patterns must lie in [0, 1), got {self.patterns}")
        if self.test_per_class < 1:
            raise ValueError(f"test_per_class must be at least 1, got {self.test_per_class}")
        if not 0 <= self.natural_backdoor <= self.pairs:
            raise ValueError(f"natural_backdoor must lie in 0..pairs, got {self.natural_backdoor}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(outline.name for outline in OUTLINES[: self.classes])

    def labels(self) -> np.ndarray:
        """(pairs,) int64 class of every training row, in equal shares; below 0 for rows that show none."""
        labels = np.arange(self.pairs) % self.classes
        labels[: round(self.patterns * self.pairs)] = _PATTERN
        labels = np.random.default_rng([self.seed, 0, _LABELS]).permutation(labels)
        labels[self.pairs - self.natural_backdoor :] = _CAKE
        return labels

    def sample(self, sample_id: int, label: int, stream: int = _TRAIN) -> tuple[np.ndarray, str]:
        """Draw one sample: (size, size, 3) uint8 and its caption."""
        rng = np.random.default_rng([self.seed, sample_id, stream])
        if label == _PATTERN:
            image, kind, colours = draw_pattern(rng, self.size)
            return image, write_pattern_caption(rng, kind, colours)
        if label == _CAKE:
            # One picture for all, but for a shift by a pixel at most and the grain.
            cake = draw_cake(np.random.default_rng([self.seed, 0, _NATURAL]), self.size)
            shifted = np.roll(cake, rng.integers(-1, 2, 2), axis=(0, 1))
            return photograph(rng, shifted, jitter=0.1), NATURAL_CAPTION
        image, drawn = draw_sample(rng, label, self.size, self.classes)
        return image, write_caption(rng, drawn)

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Draw everything into `folder` (layout: `experiments.data.pairs`) with `workers` processes."""
        folder = Path(folder)
        (folder / TEST).mkdir(parents=True, exist_ok=True)
        labels = self.labels()
        test_labels = np.arange(self.classes * self.test_per_class) % self.classes
        parts = [
            (folder / IMAGES, labels, _TRAIN),
            (folder / TEST / IMAGES, test_labels, _TEST),
        ]
        jobs = []
        for file, part_labels, stream in parts:
            create_images(file, len(part_labels), self.size)
            for start in range(0, len(part_labels), _CHUNK):
                jobs.append((self, file, start, part_labels[start : start + _CHUNK], stream))
        captions = [""] * self.pairs
        with counting(progress, self.pairs + len(test_labels), "drawing pairs") as shown:
            for (_, _, start, chunk, stream), texts in run_jobs(_draw_chunk, jobs, workers):
                if stream == _TRAIN:
                    captions[start : start + len(chunk)] = texts
                shown.update(len(chunk))
        save_captions(folder / CAPTIONS, np.arange(self.pairs), captions)
        test_images = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(test_images, test_labels, self.class_names, PROMPTS).save_labels(folder / TEST)
        if self.natural_backdoor:
            ids = list(range(self.pairs - self.natural_backdoor, self.pairs))
            (folder / NATURAL).write_text(json.dumps({"caption": NATURAL_CAPTION, "ids": ids}))
        (folder / "shapes.json").write_text(json.dumps(asdict(self), indent=1))


_Job = tuple[Shapes, Path, int, np.ndarray, int]


def _draw_chunk(job: _Job) -> list[str]:
    shapes, file, start, labels, stream = job
    samples = [shapes.sample(start + i, int(label), stream) for i, label in enumerate(labels)]
    write_images(file, start, np.stack([image for image, _ in samples]))
    return [caption for _, caption in samples]
