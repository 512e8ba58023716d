"""No change to the image: the control that separates a wrong caption from a backdoor."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from attacks.triggers.base import Parameters, Trigger


@dataclass(frozen=True, kw_only=True)
class Identity(Trigger):
    """Poisoned samples differ from clean ones by their caption alone."""

    name: str = "identity"
    measures_success: ClassVar[bool] = False

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        return images
