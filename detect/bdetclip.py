"""BDetCLIP, contrastive prompting (Niu, He, Wei, Wu, Liu, Feng, ICML 2025; arXiv 2405.15269)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from detect.base import Detector
from detect.concepts import concepts, embed_texts
from detect.embeddings import DetectorInputs, unit


@dataclass(frozen=True, kw_only=True)
class BDetCLIP(Detector):
    """Minus omega(x) = sum over classes j of cos(x, benign_j) - cos(x, malignant_j).

    benign_j is the direction of the mean of unit embeddings of class-related descriptions, malignant_j that of
    class prompts followed by unrelated sentences. For a poisoned image the two cosines hardly differ: omega is low.

    The paper has GPT-4 write both kinds of text. Without a `prompts` file (see `detect.concepts`) they come from
    the captions; the detector was made for test time, where the classes are known.

    prompts: JSON file of both kinds of text; None: they come from the captions.
    number: classes, the most frequent words of the captions.  texts: of each kind, for each class.

    >>> import numpy as np, torch
    >>> from detect import BDetCLIP, DetectorInputs, Embeddings
    >>> class Encoder:  # a CLIP model's; here the letters that a text holds
    ...     def text(self, texts):
    ...         return torch.tensor([[float(letter in text) for letter in "abcdefgh"] for text in texts])
    >>> image = np.random.default_rng(0).standard_normal((300, 8))  # (n, d)
    >>> captions = [f"the {what} near a {thing}" for what in "cat dog bee cow hen".split() for thing in range(60)]
    >>> BDetCLIP().score(DetectorInputs(Embeddings.of(image), captions, encoder=Encoder())).shape
    (300,)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"captions", "encoder"})

    prompts: str | None = None
    number: int = 100
    texts: int = 7
    seed: int = 0

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        assert inputs.captions is not None
        assert inputs.encoder is not None
        direction = 0.0
        for concept in concepts(inputs.captions, self.prompts, self.number, self.texts, self.seed):
            benign, malignant = (
                embed_texts(inputs.encoder, part).mean(axis=0) for part in (concept.related, concept.perturbed)
            )
            direction = direction + benign / np.linalg.norm(benign) - malignant / np.linalg.norm(malignant)
        return -(unit(inputs.embeddings.image).astype(np.float64) @ direction)
