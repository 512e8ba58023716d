"""Samples as img2dataset writes them, sound or damaged in one of the ways that a scan has to recognise.

The kinds are those of `experiments.data.damage`; a "broken tar" concerns a shard, not a sample, and is not here.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

Files = dict[str, bytes]
"""File ending -> content."""


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image as a file of Pillow's format `kind`."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def sample_files(image: Image.Image, caption: str, kind: str | None) -> Files:
    """The files of one sample, damaged by `kind`."""
    about = {"caption": caption, "width": image.width, "height": image.height, "status": "success"}
    files = {"jpg": _jpeg(image), "json": json.dumps(about).encode(), "txt": caption.encode()}
    if kind is None or kind in SHARD_KINDS:
        return files
    if kind in OTHER_IMAGES:
        ending, content = OTHER_IMAGES[kind](image)
        return {ending: content, "json": files["json"], "txt": files["txt"]}
    if kind == "missing image":
        del files["jpg"]
    elif kind == "missing caption":
        files["json"], files["txt"] = json.dumps({**about, "caption": None}).encode(), b" \n"
    elif kind == "broken caption":
        files["json"] = files["json"][:9]
        del files["txt"]
    else:
        raise ValueError(f"kind must be one of {', '.join(LEFT_OUT + NOTES)}, got {kind!r}")
    return files


def _jpeg(image: Image.Image) -> bytes:
    return encoded(image, "JPEG", quality=90)


def _truncated(image: Image.Image) -> tuple[str, bytes]:
    jpeg = _jpeg(image)
    return "jpg", jpeg[: len(jpeg) // 2]


def _corrupt(image: Image.Image) -> tuple[str, bytes]:
    png = encoded(image, "PNG")
    return "png", png[:60] + bytes(200) + png[260:]


def _bomb(_: Image.Image) -> tuple[str, bytes]:
    """A PNG of a few bytes that claims 30,000 x 30,000 pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(999))),
    ]
    framed = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    ]
    return "png", b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _turned(image: Image.Image) -> tuple[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    return "jpg", encoded(image.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=90, exif=exif)


def _transparent(image: Image.Image) -> tuple[str, bytes]:
    layer = image.convert("RGBA")
    layer.putalpha(Image.linear_gradient("L").resize(image.size))
    return "png", encoded(layer, "PNG")


def _animated(image: Image.Image) -> tuple[str, bytes]:
    frames = [image.rotate(5), image.rotate(10)]
    return "webp", encoded(image, "WEBP", save_all=True, append_images=frames)


OTHER_IMAGES: dict[str, Callable[[Image.Image], tuple[str, bytes]]] = {
    "truncated": _truncated,
    "corrupt": _corrupt,
    "empty file": lambda _: ("jpg", b""),
    "not an image": lambda _: ("jpg", b"<html><body>404 Not Found</body></html>"),
    "decompression bomb": _bomb,
    "too small": lambda _: ("jpg", encoded(Image.new("RGB", (1, 1)), "JPEG")),
    "CMYK": lambda image: ("jpg", _jpeg(image.convert("CMYK"))),
    "grey": lambda image: ("jpg", _jpeg(image.convert("L"))),
    "palette": lambda image: ("png", encoded(image.quantize(64), "PNG")),
    "animated, first frame taken": _animated,
    "turned upright": _turned,
    "transparent, laid on white": _transparent,
}
"""Kind -> the image file (ending, content) that takes the place of the sound one."""

SHARD_KINDS = ("duplicate key",)
"""Kinds whose files are sound; only their place in the shard is wrong."""

LEFT_OUT = (
    *("truncated", "corrupt", "empty file", "not an image", "decompression bomb", "too small"),
    *("missing image", "missing caption", "broken caption"),
)
"""Kinds that leave a sample without a score."""

NOTES = (
    *("duplicate key", "CMYK", "grey", "palette", "animated, first frame taken", "turned upright"),
    "transparent, laid on white",
)
"""Kinds that are read, and noted."""
