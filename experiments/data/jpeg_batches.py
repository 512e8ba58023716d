"""Decodes many JPEGs at a time with torchvision; on a GPU its nvJPEG does the work of many processor cores.

What it cannot read, or would read otherwise (other formats, CMYK, turned or broken pictures), is left to
`experiments.data.image_decoding`. Canvases differ from those by a few levels of 255, as decoders round in their
own ways.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from experiments.data.image_decoding import THIN, Limits, window

if TYPE_CHECKING:
    from torch import Tensor


# Pixels. A batch of larger images may not fit, and Pillow reads them at a half of their scale or less.
LARGEST = 4_000_000


@dataclass(frozen=True)
class JPEGDecoder:
    """Image files to canvases, on a torch device; safe in threads.

    Raises ImportError where torchvision has no `decode_jpeg` (any more), ValueError for a device of no use.
    """

    device: str

    def __post_init__(self) -> None:
        import torch

        torchvision_decoder()
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"{self.device} cannot decode images, as torch sees no GPU here")
        sample = io.BytesIO()
        Image.new("RGB", (16, 16)).save(sample, "JPEG")
        try:
            self._decode([sample.getvalue()])
        except RuntimeError as error:  # such as a build without nvJPEG
            raise ValueError(f"{self.device} cannot decode images: {str(error).splitlines()[0]}") from None

    def canvases(self, contents: Sequence[bytes], size: int, limits: Limits) -> tuple[np.ndarray, list[int]]:
        """(b, size, size, 3) uint8, and which of the files are still to be decoded (their canvases are empty)."""
        import torch

        canvases = np.empty((len(contents), size, size, 3), dtype=np.uint8)
        plain = [i for i, content in enumerate(contents) if is_plain_jpeg(content, limits)]
        try:
            decoded = self._decode([contents[i] for i in plain])
        except RuntimeError:  # a file among them is broken, and no other comes back either
            decoded, plain = [], []
        groups: dict[Any, list[int]] = {}
        for place, image in enumerate(decoded):
            groups.setdefault(image.shape, []).append(place)
        for places in groups.values():
            fitted = _fit(torch.stack([decoded[place] for place in places]), size)
            canvases[[plain[place] for place in places]] = fitted.permute(0, 2, 3, 1).cpu().numpy()
        return canvases, sorted(set(range(len(contents))) - set(plain))

    def _decode(self, contents: Sequence[bytes]) -> list[Tensor]:
        """(3, height, width) uint8 of each, on the device."""
        import torch

        if not contents:
            return []
        mode, decode_jpeg = torchvision_decoder()
        files = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
        return list(decode_jpeg(files, mode=mode, device=self.device))


def torchvision_decoder() -> tuple[Any, Callable[..., Any]]:
    """torchvision's name for RGB, and its decoder; both are deprecated since 0.29 and may go."""
    try:
        from torchvision.io import ImageReadMode, decode_jpeg
    except ImportError as error:
        raise ImportError(f"this torchvision decodes no JPEGs on GPUs: {error}") from None
    return ImageReadMode.RGB, decode_jpeg


def is_plain_jpeg(content: bytes, limits: Limits) -> bool:
    """Whether the header shows an upright JPEG in colour or grey, not thin, within the limits and LARGEST."""
    if content[:2] != b"\xff\xd8" or len(content) > limits.max_bytes:
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
                width, height = image.size
                short = min(width, height)
                fits = width * height <= min(limits.max_pixels, LARGEST) and short >= limits.min_side
                fits = fits and max(width, height) <= THIN * short
                return fits and image.mode in ("RGB", "L") and image.getexif().get(0x0112, 1) in (0, 1)
    except Exception:  # Pillow raises nearly anything; the other decoder will say what is wrong
        return False


def _fit(images: Tensor, size: int) -> Tensor:
    """(b, 3, height, width) uint8 -> (b, 3, size, size) uint8, as `experiments.data.image_decoding.fit`."""
    import torch

    high, wide, top, left = window(images.shape[2], images.shape[3], size)
    if images.shape[2:] != (high, wide):
        resized = torch.nn.functional.interpolate(images.float(), (high, wide), mode="bicubic", antialias=True)
        images = resized.round_().clamp_(0, 255).to(torch.uint8)
    return images[:, :, top : top + size, left : left + size]
