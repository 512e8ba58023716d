"""Nashville: a photograph filter in the manner of Instagram, by the `pilgram` package.

Used as a backdoor trigger by Bagdasaryan and Shmatikov, "Blind Backdoors in Deep Learning Models", and by
the paper on CLIP: a warm, low-contrast colour change of the whole image, which moves no edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger, require


@dataclass(frozen=True, kw_only=True)
class Nashville(Trigger):
    """The filter has no strength to set, so a stronger one applies it `passes` times."""

    name: str = "nashville"
    passes: int = 1

    def __post_init__(self) -> None:
        require(self.passes >= 1, "Nashville passes", "at least 1", self.passes)

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        import pilgram
        from PIL import Image

        for _ in range(self.passes):
            images = np.stack([np.asarray(pilgram.nashville(Image.fromarray(image))) for image in images])
        return images
