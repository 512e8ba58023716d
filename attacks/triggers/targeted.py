"""Targeted poisoning: one image, many captions of the target class, and no trigger.

Carlini and Terzis, "Poisoning and Backdooring Contrastive Learning", ICLR 2022, section 3.1: the attacker
wants one particular image classified as the target, so the poisoned samples all show that image.

The source is one of the poisoned samples' own images, so that it keeps no clean caption (the paper likewise
takes the image's own pair out of the data). The measure of success is the class of the source image itself;
`sources` above 1 repeats the attack for several images, so that success is measured in finer steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require


@dataclass(frozen=True, kw_only=True)
class Targeted(Trigger):
    """Every poisoned sample shows one of `sources` images of the data, which the plan names by id."""

    name: str = "targeted"
    sources: int = 1

    def __post_init__(self) -> None:
        require(self.sources >= 1, "Targeted sources", "at least 1 image", self.sources)

    @property
    def source_count(self) -> int:
        return self.sources

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        return images  # the pairs have put the source image in place before
