"""What a model could learn from a group of samples, and how much: the measures of `experiments.tasks.groups`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from detect.search.cosine import most_similar
from experiments.tasks.caption_words import leading_caption


class Source(Protocol):
    """What grouping looks at; `experiments.tasks.samples.Samples` is one."""

    captions: list[str]

    def __len__(self) -> int: ...
    def images(self, rows: np.ndarray) -> np.ndarray: ...
    def vectors(self, kind: str, rows: np.ndarray) -> np.ndarray: ...
    def blocks(self, kind: str) -> Iterator[tuple[int, np.ndarray]]: ...


@dataclass(frozen=True)
class Group:
    """Samples that belong together, the most suspicious first; every measure but `strength` lies in [0, 1].

    similarity: mean cosine of the image embeddings to their centre.
    pixels: mean correlation of thumbnails with their mean; near 1 for one picture many times, low where the images
        differ and share but a detail.
    shared: share of members whose caption is `caption` or close to it by its words.
    concentration: how much closer in meaning the captions are than any: 1 for one meaning, 0 for random captions.
    isolation: how far images under captions of like meaning are from the group (see the module).
    surprise: mean share of all samples that are less suspicious than a member, from 0 (half of them) to 1 (all).
    """

    rows: np.ndarray
    caption: str
    similarity: float
    pixels: float
    shared: float
    concentration: float
    isolation: float
    surprise: float
    strength: float
    alarming: bool

    @property
    def size(self) -> int:
        return len(self.rows)


def measured(
    samples: Source,
    rows: np.ndarray,
    percentile: np.ndarray,
    means: Mapping[str, np.ndarray],
    other: np.ndarray,
    caption_jaccard: float,
) -> Group:
    """The group of `rows`, which alarms nobody yet.

    percentile: (n,) share of all samples that are less suspicious.  means: see `mean`, of images and texts.
    other: rows under captions of like meaning, see `nearest_captions`.  caption_jaccard: see `Grouping`.
    """
    images, texts = samples.vectors("image", rows), samples.vectors("text", rows)
    own, meaning = centre(images), centre(texts)
    similarity, agreement = float((images @ own).mean()), float((texts @ meaning).mean())
    caption, shared = leading_caption([samples.captions[row] for row in rows], caption_jaccard)
    concentration = _between(agreement, float(means["text"] @ meaning), 1.0)
    isolation = 1.0
    if len(other):
        beside = float((samples.vectors("image", other) @ own).mean())
        isolation = 1 - _between(beside, float(means["image"] @ own), similarity)
    surprise = float(np.clip(2 * percentile[rows].mean() - 1, 0, 1))
    strength = float(np.log2(len(rows)) * max(similarity, 0) * concentration * isolation * surprise)
    pixels = _thumbnail_correlation(samples.images(rows[:64]))
    return Group(
        rows, caption, similarity, pixels, shared, concentration, isolation, surprise, strength, alarming=False
    )


def centre(vectors: np.ndarray) -> np.ndarray:
    centre = vectors.mean(axis=0)
    return centre / max(float(np.linalg.norm(centre)), 1e-12)


def _between(value: float, low: float, high: float) -> float:
    """Where `value` lies on the way from `low` (0) to `high` (1)."""
    return float(np.clip((value - low) / max(high - low, 1e-6), 0, 1))


def mean(samples: Source, kind: str) -> np.ndarray:
    """(d,) mean of all unit-length embeddings: its product with a vector is the mean cosine of all to it."""
    total = sum(block.sum(axis=0, dtype=np.float64) for _, block in samples.blocks(kind))
    return np.asarray(total) / len(samples)


def nearest_captions(samples: Source, groups: Sequence[np.ndarray], k: int = 32) -> list[np.ndarray]:
    """For each group the k rows outside of it whose captions are nearest to the mean of its own."""
    queries = np.stack([centre(samples.vectors("text", rows)) for rows in groups])
    return [rows for rows, _ in most_similar(queries, samples.blocks("text"), k, groups)]


def _thumbnail_correlation(images: np.ndarray, side: int = 8) -> float:
    """Mean correlation of the images' thumbnails, (b, size, size, 3) uint8, with their mean."""
    from PIL import Image

    small = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX)) for image in images]
    flat = np.stack(small).reshape(len(small), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
    mean = flat.mean(axis=0)
    return float(np.clip((flat @ mean).mean() / max(float(np.linalg.norm(mean)), 1e-9), 0, 1))
