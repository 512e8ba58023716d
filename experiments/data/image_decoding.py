"""Image files to canvases: any colour mode, upright, shorter side resized, centre cropped.

Resize and crop are those of torchvision's `Resize(size, BICUBIC)` and `CenterCrop(size)`, open_clip's evaluation
transform; by torch, which takes less than half of Pillow's time and agrees with it within two levels of 255.

Of what surrounds the pixels, only the orientation is read, and nothing there makes a picture unusable. Memory is
bounded by the picture itself: it is resized a band of rows at a time, and cropped beforehand if it is more than
THIN times as long as wide.
"""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, UnidentifiedImageError

from experiments.data.damage import DecodeError
from experiments.data.pixel_depth import is_deep, to_8_bits

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "AVIF", "MPO")
"""Formats that are opened. Pillow's formats that start other programs, such as EPS, are left out."""

THIN = 20
"""A picture with a larger ratio of its sides is cropped before it is resized, as the rest might be huge."""

_BAND = 4_000_000  # pixels that are resized at a time
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Limits:
    """Limits that an image must keep to.

    `max_pixels` and `max_bytes` are compared with the header and the file, before anything is decoded. To decode
    takes up to 10 bytes of memory for each pixel (tests/unit/test_data_image_decoding.py), so that `max_pixels`
    bounds the memory: 0.9 GB by default. WebP's decoder takes 16 bytes, and so is allowed half as many pixels.
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
                # Large JPEGs are decoded at a half, quarter or eighth, still twice the canvas or more.
                if opened.format == "JPEG":
                    opened.draft(None, (2 * size, 2 * size))
                opened.load()
                _check_pixels(opened, limits)  # again: an icon holds a picture with a header of its own
                turn = _turn(opened)
                if turn is not None:
                    notes.append("turned upright")
                image = _fit_any(opened, size, turn, notes)
                if _animated(opened):
                    notes.insert(0, "animated, first frame taken")
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


def fit(image: Image.Image, size: int, turn: Image.Transpose | None = None, mode: str = "RGB") -> np.ndarray:
    """Resize the shorter side to `size` (bicubic), then crop the centre: (size, size, 3) uint8.

    turn: done before, but after the crop of a thin picture. mode: RGB, or RGBA for what is to be laid on white.
    """
    image = _without_ends(image)
    if turn is not None:
        image = image.transpose(turn)
    high, wide, top, left = window(image.height, image.width, size)
    if mode == "RGB":
        pixels = _resize(image, high, wide)
    else:
        layer = _resize_layer(image, high, wide)
        pixels = np.asarray(Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB"))
    return pixels[top : top + size, left : left + size]


def _without_ends(image: Image.Image) -> Image.Image:
    """Crop a thin picture around its centre until it is three times as long as wide; return others unchanged."""
    width, height = image.size
    short = min(width, height)
    if max(width, height) <= THIN * short:
        return image
    left, top = (max(0, (side - 3 * short) // 2) for side in (width, height))
    return image.crop((left, top, width - left, height - top))


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    """The picture in bands of rows, from the top: rows are resized before columns, so that bands change nothing."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _resize(image: Image.Image, high: int, wide: int) -> np.ndarray:
    """(high, wide, 3) uint8."""
    narrow = [_interpolate(np.asarray(band.convert("RGB")), band.height, wide) for band in _bands(image)]
    return _interpolate(np.concatenate(narrow), high, wide)


def _interpolate(pixels: np.ndarray, high: int, wide: int) -> np.ndarray:
    if pixels.shape[:2] == (high, wide):
        return pixels
    import torch

    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    planes = torch.nn.functional.interpolate(planes, (high, wide), mode="bicubic", antialias=True)
    return planes[0].permute(1, 2, 0).numpy()


def _resize_layer(image: Image.Image, high: int, wide: int) -> Image.Image:
    """RGBA of (wide, high), by Pillow, which weighs pixels by their opacity."""
    if image.width * image.height <= _BAND:
        return image.convert("RGBA").resize((wide, high), Image.Resampling.BICUBIC)
    narrow, top = Image.new("RGBa", (wide, image.height)), 0
    for band in _bands(image):
        weighed = band.convert("RGBA").convert("RGBa")
        narrow.paste(weighed.resize((wide, band.height), Image.Resampling.BICUBIC), (0, top))
        top += band.height
    return narrow.resize((wide, high), Image.Resampling.BICUBIC).convert("RGBA")


def window(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """Height and width to resize to, and the upper left corner of the centre crop."""
    short = min(width, height)
    high, wide = int(size * height / short), int(size * width / short)
    return high, wide, round((high - size) / 2.0), round((wide - size) / 2.0)


@functools.cache
def _formats() -> tuple[str, ...]:
    """The FORMATS that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check(image: Image.Image, limits: Limits) -> None:
    _check_pixels(image, limits)
    width, height = image.size
    if min(width, height) < limits.min_side:
        raise DecodeError("too small", f"{width} x {height} pixels, a side below {limits.min_side}")


def _check_pixels(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
    most = limits.max_pixels // 2 if image.format == "WEBP" else limits.max_pixels
    if width * height > most:
        raise DecodeError("decompression bomb", f"{width} x {height} pixels, more than {most:,}")


def _turn(image: Image.Image) -> Image.Transpose | None:
    """How to turn the picture upright, from its EXIF orientation; None if that cannot be read."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow raises nearly anything on broken metadata; the pixels are sound
        return None
    return _TURNS.get(orientation) if isinstance(orientation, int) else None


def _animated(image: Image.Image) -> bool:
    """Whether there is a second frame, as far as can be known; call this last, as it moves to that frame."""
    if image.format == "MPO":  # a photo with a preview
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # what is behind the first frame is broken, and not used
        return False


def _fit_any(image: Image.Image, size: int, turn: Image.Transpose | None, notes: list[str]) -> np.ndarray:
    """`fit` for any of Pillow's modes."""
    mode = image.mode
    if is_deep(mode):
        return fit(to_8_bits(image, image.format in ("PNG", "PPM"), notes), size, turn)
    if mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        opaque = all(_opaque(band) for band in _bands(image))
        if not opaque:
            notes.append("transparent, laid on white")
        return fit(image, size, turn, "RGB" if opaque else "RGBA")
    if mode != "RGB":
        names = {"L": "grey", "1": "black and white", "P": "palette", "CMYK": "CMYK"}
        notes.append(names.get(mode, mode))
    return fit(image, size, turn)


def _opaque(band: Image.Image) -> bool:
    return band.convert("RGBA").getchannel("A").getextrema() == (255, 255)
