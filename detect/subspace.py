"""Subspace Detection (Song, Zheng, Xu, Li, Wu, ICLR 2026; openreview.net/forum?id=Kpij6oOnJl).

The abstract gives the idea; the formula is taken from the public re-implementation in jsrdcht/SSL-Backdoor, which
follows the paper's Algorithm 1. A poisoned image matches the text of its target, but not the texts around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.concepts import TEMPLATE, concepts, embed_texts
from detect.embeddings import DetectorInputs, unit


@dataclass(frozen=True, kw_only=True)
class SubspaceDetection(Detector):
    """Mean squared distance of the image to points drawn from a region around the text it is closest to.

    For each class: the class's text and variants of it span a subspace (principal components up to `variance` of
    the total). In it every variant v is pushed further from the class text t, to v + u (v - t) with u uniform,
    where its cosine to t, divided by that of v, must lie in `ratio`; `mixtures` Gaussians around the means of such
    points (step `eta` along their deviations) give `samples` points of the region.

    The paper's variants are bold and italic letters, a translation and six descriptions by a language model; here
    they are descriptions only: captions that hold the word, or a `prompts` file (see `detect.concepts`).

    prompts: JSON file of the descriptions; None: they come from the captions.
    number: classes, the most frequent words of the captions.  texts: variants of each class.
    variance: share of the variance that a class's subspace keeps.
    per_variant: pushed points for each variant.  mixtures: Gaussians of each class.
    samples: points drawn from each region.  eta: step of a drawn point along the deviations.
    ratio: bounds of a pushed point's cosine to the class text, as a share of its variant's cosine.
    trials: how often a pushed point is drawn again, until it does.

    >>> import numpy as np, torch
    >>> from detect import DetectorInputs, Embeddings, SubspaceDetection
    >>> class Encoder:  # a CLIP model's; here the letters that a text holds
    ...     def text(self, texts):
    ...         return torch.tensor([[float(letter in text) for letter in "abcdefgh"] for text in texts])
    >>> image = np.random.default_rng(0).standard_normal((300, 8))  # (n, d)
    >>> captions = [f"the {what} near a {thing}" for what in "cat dog bee cow hen".split() for thing in range(60)]
    >>> SubspaceDetection().score(DetectorInputs(Embeddings.of(image), captions, encoder=Encoder())).shape
    (300,)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"captions", "encoder"})

    prompts: str | None = None
    number: int = 100
    texts: int = 9
    variance: float = 0.95
    per_variant: int = 10
    mixtures: int = 3
    samples: int = 15
    eta: float = 1e-3
    ratio: tuple[float, float] = (0.85, 1.0)
    trials: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise ValueError(f"variance must lie in (0, 1], got {self.variance}")
        for name in ("per_variant", "mixtures", "samples", "trials"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        assert inputs.captions is not None
        assert inputs.encoder is not None
        found = concepts(inputs.captions, self.prompts, self.number, self.texts, self.seed)
        rng = np.random.default_rng(self.seed)
        titles = embed_texts(inputs.encoder, [TEMPLATE.format(concept.name) for concept in found])  # (c, d)
        image = unit(inputs.embeddings.image).astype(np.float64)  # (n, d)
        predicted = (image @ titles.T).argmax(axis=1)
        scores = np.full(len(image), np.nan)
        for label, concept in enumerate(found):
            rows = np.flatnonzero(predicted == label)
            if len(rows):
                region = self.region(titles[label], embed_texts(inputs.encoder, concept.related), rng)
                apart = image[rows, None] - region  # (b, samples, d)
                scores[rows] = (apart**2).sum(axis=2).mean(axis=1)
        return scores

    def region(self, title: np.ndarray, variants: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Points (samples, d) of the region of a class, from its text (d,) and variants of it (v, d)."""
        every = np.vstack([title, variants])
        mean = every.mean(axis=0)
        _, spread, basis = np.linalg.svd(every - mean, full_matrices=False)
        if spread[0] <= 1e-9:  # the variants all say the same
            return np.repeat(mean[None], self.samples, axis=0)
        share = np.cumsum(spread**2) / np.sum(spread**2)
        basis = basis[: min(int(np.searchsorted(share, self.variance)) + 1, len(basis))]  # (p, d)
        start, points = (title - mean) @ basis.T, (variants - mean) @ basis.T  # (p,), (v, p)
        clouds = []
        for _ in range(self.mixtures):
            pushed = [
                self._push(point, start, mean, basis, title, variant, rng)
                for point, variant in zip(points, variants, strict=True)
                for _ in range(self.per_variant)
            ]
            clouds.append(np.vstack([points, pushed]))
        drawn = []
        for cloud in (clouds[i] for i in rng.integers(self.mixtures, size=self.samples)):
            centre = cloud.mean(axis=0)
            step = self.eta * (cloud - centre).T @ rng.standard_normal(len(cloud))
            drawn.append(mean + (centre + step) @ basis)
        return np.stack(drawn)

    def _push(
        self,
        point: np.ndarray,
        start: np.ndarray,
        mean: np.ndarray,
        basis: np.ndarray,
        title: np.ndarray,
        variant: np.ndarray,
        rng: np.random.Generator,
    ) -> np.ndarray:
        own = max(_cosine(variant, title), 1e-8)
        pushed = point
        for _ in range(self.trials):
            pushed = point + rng.random() * (point - start)
            if self.ratio[0] < _cosine(mean + pushed @ basis, title) / own < self.ratio[1]:
                break
        return pushed


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12))
