"""Image files to canvases: any colour mode, upright, shorter side resized, centre cropped.

Resize and crop are those of torchvision's `Resize(size, BICUBIC)` and `CenterCrop(size)`, open_clip's evaluation
transform; by torch, which takes less than half of Pillow's time and agrees with it within two levels of 255.
"""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from experiments.data.damage import DecodeError

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "AVIF", "MPO")
"""What is opened; leaves out Pillow's formats that start other programs, such as EPS."""


@dataclass(frozen=True)
class Limits:
    """What an image must keep to.

    `max_pixels` and `max_bytes` are held against the header and the file, before anything is decoded.
    """

    min_side: int = 8
    max_pixels: int = 89_478_485
    max_bytes: int = 200_000_000

    def __post_init__(self) -> None:
        for name in ("min_side", "max_pixels", "max_bytes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Canvas:
    """A decoded sample: (size, size, 3) uint8, and what was peculiar about the file."""

    image: np.ndarray
    notes: list[str] = field(default_factory=list)


def decode(content: bytes, size: int, limits: Limits) -> Canvas:
    """Decode an image file's bytes; raises Damage."""
    if not content:
        raise DecodeError("empty file")
    if len(content) > limits.max_bytes:
        raise DecodeError("too large", f"{len(content):,} bytes, more than {limits.max_bytes:,}")
    notes: list[str] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_formats()) as opened:
                _check(opened, limits)
                if getattr(opened, "n_frames", 1) > 1 and opened.format != "MPO":
                    notes.append("animated, first frame taken")
                # Large JPEGs are decoded at a half, quarter or eighth, still twice the canvas or more.
                if opened.format == "JPEG":
                    opened.draft(None, (2 * size, 2 * size))
                opened.load()
                if opened.getexif().get(0x0112, 1) not in (0, 1):
                    notes.append("turned upright")
                image = fit(_plain(ImageOps.exif_transpose(opened), notes), size)
    except DecodeError:
        raise
    except UnidentifiedImageError:
        raise DecodeError("not an image", f"starts with {content[:12]!r}") from None
    except Image.DecompressionBombError as error:
        raise DecodeError("decompression bomb", str(error)) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on broken files
        text = f"{type(error).__name__}: {error}"
        truncated = "truncated" in text.lower() or isinstance(error, EOFError)
        raise DecodeError("truncated" if truncated else "corrupt", text) from None
    return Canvas(image, notes)


def fit(image: Image.Image, size: int) -> np.ndarray:
    """Resize the shorter side to `size` (bicubic), then crop the centre: RGB or RGBA to (size, size, 3) uint8."""
    high, wide, top, left = window(image.height, image.width, size)
    if image.mode == "RGBA":  # Pillow weighs pixels by their opacity
        image = image.resize((wide, high), Image.Resampling.BICUBIC)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = np.asarray(image)
    if pixels.shape[:2] != (high, wide):
        import torch

        planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
        planes = torch.nn.functional.interpolate(planes, (high, wide), mode="bicubic", antialias=True)
        pixels = planes[0].permute(1, 2, 0).numpy()
    return pixels[top : top + size, left : left + size]


def window(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Height and width to resize to, and the upper left corner of the centre crop."""
    short = min(width, height)
    high, wide = int(size * height / short), int(size * width / short)
    return high, wide, round((high - size) / 2.0), round((wide - size) / 2.0)


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise DecodeError("decompression bomb", f"{width} x {height} pixels, more than {limits.max_pixels:,}")
    if min(width, height) < limits.min_side:
        raise DecodeError("too small", f"{width} x {height} pixels, a side below {limits.min_side}")


def _plain(image: Image.Image, notes: list[str]) -> Image.Image:
    """Any mode to RGB, or to RGBA for what is partly transparent."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode in ("I;16", "I;16L", "I;16B", "I", "F"):
        notes.append("more than 8 bits")
        values = np.asarray(image, dtype=np.float64)
        top = 255.0 if values.max(initial=0) <= 255 else max(65535.0, values.max())
        grey = np.clip(values / top * 255, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        if layer.getchannel("A").getextrema() == (255, 255):
            return layer.convert("RGB")
        notes.append("transparent, laid on white")
        return layer
    names = {"L": "grey", "1": "black and white", "P": "palette", "CMYK": "CMYK"}
    notes.append(names.get(mode, mode))
    return image.convert("RGB")
