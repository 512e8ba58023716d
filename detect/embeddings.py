"""The inputs of a detector: embeddings, and other inputs that some detectors need. Never labels."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Encoder(Protocol):
    """A CLIP model as detectors see it; embeddings are not normalised."""

    def image(self, x: Tensor) -> Tensor:
        """(b, 3, H, W) in [0, 1] -> (b, d), differentiable."""

    def text(self, texts: Sequence[str]) -> Tensor:
        """m texts -> (m, d)."""


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of n samples.

    ids: (n,) int64, unique.  image: (n, d) float32.  text: (n, d) float32 or None.
    Raises ValueError for shapes that do not fit, repeated ids, and NaN or infinite rows, which it names.
    """

    ids: np.ndarray
    image: np.ndarray
    text: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 2:
            raise ValueError(f"image embeddings must be (n, d), got shape {self.image.shape}")
        if self.ids.shape != (len(self.image),):
            raise ValueError(f"ids must be ({len(self.image)},), one per embedding, got shape {self.ids.shape}")
        if len(np.unique(self.ids)) != len(self.ids):
            raise ValueError("sample ids must be unique, but some repeat")
        if self.text is not None and self.text.shape != self.image.shape:
            raise ValueError(
                f"text embeddings must have the images' shape {self.image.shape}, got {self.text.shape}"
            )
        for name, part in (("image", self.image), ("text", self.text)):
            if part is not None:
                _require_finite(name, part)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, x: Any) -> Embeddings:
        """Embeddings as they are, or image embeddings with ids 0 to n - 1: an (n, d) array, tensor or DataFrame,
        or a column of n vectors."""
        if isinstance(x, Embeddings):
            return x
        if hasattr(x, "detach"):
            x = x.detach().float().cpu().numpy()
        image = _numbers(x)
        return cls(np.arange(len(image), dtype=np.int64) if image.ndim else np.empty(0), image)

    def normalised(self) -> Embeddings:
        """A copy with rows of unit length; a zero row stays zero."""
        return replace(self, image=unit(self.image), text=None if self.text is None else unit(self.text))


@dataclass(frozen=True)
class DetectorInputs:
    """All inputs that a detector may use.

    losses: (n, epochs) contrastive loss of each sample in each training epoch.
    images: row positions (b,) -> float tensor (b, 3, H, W) in [0, 1].
    views: (n, views) cosine of each augmented image (`detect.views.VIEWS`) with the sample's caption.
    drift: (n, views) 1 - cosine of the image with each of its augmentations (`detect.views.DRIFT`).
    earlier: the same samples, embedded by a model that was trained less.
    """

    embeddings: Embeddings
    captions: Sequence[str] | None = None
    losses: np.ndarray | None = None
    encoder: Encoder | None = None
    images: Callable[[np.ndarray], Tensor] | None = None
    views: np.ndarray | None = None
    drift: np.ndarray | None = None
    earlier: Embeddings | None = None

    @classmethod
    def of(cls, x: Any) -> DetectorInputs:
        """DetectorInputs as it is, or embeddings (see `Embeddings.of`) and nothing else."""
        return x if isinstance(x, DetectorInputs) else cls(Embeddings.of(x))


def unit(x: np.ndarray) -> np.ndarray:
    """(n, d) -> rows of unit length; a zero row stays zero.

    Rows whose squares float32 does not hold (norms beyond 1e18, below 1e-15) are measured in float64.
    """
    with np.errstate(over="ignore", under="ignore"):
        length = np.linalg.norm(x, axis=1, keepdims=True)
        whole = (x / np.where(length > 0, length, 1)).astype(np.float32)
    hard = np.flatnonzero(~(length < 1e18) | (length < 1e-15))
    if len(hard):
        rows = np.asarray(x[hard], np.float64)
        rows /= np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        whole[hard] = rows / np.where(length > 0, length, 1)
    return whole


def with_index(x: Any, scores: np.ndarray, name: str) -> Any:
    """The scores (n,) of `x`; as a Series with its index, if `x` is a DataFrame or a Series of pandas."""
    pandas = sys.modules.get("pandas")
    if pandas is None or not isinstance(x, (pandas.DataFrame, pandas.Series)):
        return scores
    return pandas.Series(scores, index=x.index, name=name)


def _numbers(x: Any) -> np.ndarray:
    """An array, a DataFrame, or a column of vectors, as float32; ValueError names a column of something else."""
    if hasattr(x, "dtypes") and hasattr(x, "columns"):
        other = [name for name, kind in x.dtypes.items() if getattr(kind, "kind", "O") not in "fiub"]
        if other and len(x.columns) > 1:
            raise ValueError(f"a DataFrame of embeddings must hold numbers only, but column {other[0]!r} does not")
    image = np.asarray(x)
    if image.dtype == object and image.ndim == 2 and image.shape[1] == 1:
        image = image[:, 0]
    if image.dtype == object and image.ndim == 1 and len(image) and not np.isscalar(image[0]):
        if len(lengths := {np.shape(row) for row in image}) > 1:
            raise ValueError(f"vectors must be equally long, got shapes {', '.join(map(str, sorted(lengths)[:3]))}")
        image = np.stack(list(image))
    return image.astype(np.float32, copy=False)


def _require_finite(name: str, part: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
    if len(bad):
        shown = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(f"{name} embeddings must be finite, but {len(bad)} rows are not: {shown}")
