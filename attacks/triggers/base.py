"""The trigger: a change to an image that the attacker can also make at test time."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

Parameters = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Trigger(ABC):
    """A deterministic image -> image map, given parameters that are drawn once per sample.

    Every subclass has a `name`, unique within its attack. `_apply` does the work on a batch; `apply_one` and
    `apply` check the canvas and pass copies; other code calls these two.
    """

    name: str

    measures_success: ClassVar[bool] = True
    """False where the image is left as it is, so that there is no attack success rate to measure."""

    @property
    def files(self) -> tuple[str, ...]:
        """Files whose content decides the result, beside the trigger's own fields."""
        return ()

    @property
    def version(self) -> int:
        """Raised when a change to the code gives other images: a model trained on the old ones is not reused."""
        return 1

    @property
    def source_count(self) -> int:
        """Number of images of the data that replace all poisoned images; 0 where each sample keeps its own."""
        return 0

    @property
    def blends_pictures(self) -> bool:
        """Whether the parameters of each sample get a `picture`: another image of the data, (size, size, 3).

        The plan names it by id; the pairs (`PoisonedPairs`) put the image in its place.
        """
        return False

    @property
    def needs_patch(self) -> bool:
        """Whether its patch has yet to be optimised on a model."""
        return False

    def draw(self, rng: np.random.Generator, size: int) -> Parameters:
        """Parameters of one poisoned sample on a canvas of `size` pixels; JSON-able."""
        return {}

    def test_parameters(self, size: int) -> Parameters:
        """Parameters with which the attacker triggers the trained model."""
        return {}

    def check(self, size: int) -> None:
        """Raise ValueError if this trigger cannot be put on a canvas of `size` pixels."""
        return

    @abstractmethod
    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        """Triggered copies of `images`, uint8 (b, size, size, 3); `images` may be overwritten."""

    def apply_one(self, image: np.ndarray, parameters: Parameters) -> np.ndarray:
        """A triggered copy of one canvas, uint8 (size, size, 3)."""
        return self.apply(np.asarray(image)[None], [parameters])[0]

    def apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        """Triggered copies of `images`, uint8 (b, size, size, 3), one dict of parameters per image."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (images.shape[1],) * 2 + (3,):
            raise ValueError(
                f"trigger {self.name!r} needs square uint8 canvases (b, size, size, 3), "
                f"got {images.dtype} {images.shape}"
            )
        if len(parameters) != len(images):
            raise ValueError(f"{len(images)} images but {len(parameters)} sets of parameters")
        if len(images) == 0:
            return images.copy()
        self.check(images.shape[1])
        return self._apply(images.copy(), parameters)


def to_levels(values: np.ndarray) -> np.ndarray:
    """Grey levels 0 to 255 as uint8: rounded to the nearest, clipped, never wrapped."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def require(ok: bool, parameter: str, rule: str, value: object) -> None:
    """ValueError that names the parameter, the rule and the value given."""
    if not ok:
        raise ValueError(f"{parameter} must be {rule}, got {value!r}")
