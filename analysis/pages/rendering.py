"""A page is one self-contained HTML file: a Jinja2 template of this folder with its data, as JSON, inside."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

THUMBNAIL = 96  # pixels at most
PIXELWISE = 64  # up to which a picture is shown pixel by pixel
PER_CHUNK = 100  # pictures


def render(
    template: str,
    data: Any,
    path: Path,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    pictures: Sequence[str] = (),
) -> None:
    """Write a page of this folder, with its data inside, as one self-contained file.

    styles, scripts: files of this folder that the template takes as `style` and `script`, joined; its `policy` lets
    nothing else be loaded or run.  pictures: data URLs, which the template takes as `chunks`, JSON lists of
    `PER_CHUNK` each.
    """
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    here = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(here), autoescape=select_autoescape(), trim_blocks=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    style, script = (
        "\n".join((here / name).read_text(encoding="utf-8") for name in names) for names in (styles, scripts)
    )
    page = environment.get_template(template).render(
        data=_json(data),
        style=style,
        script=script,
        policy=_policy(style, script),
        chunks=[_json(pictures[at : at + PER_CHUNK]) for at in range(0, len(pictures), PER_CHUNK)],
    )
    path.write_text(page, encoding="utf-8")


def _json(data: Any) -> str:
    """JSON for a <script> element, which only "<" could end; everything else is as it is."""
    return json.dumps(plain(data), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _policy(style: str, script: str) -> str:
    """A content security policy for a page of this one style and this one script, and pictures inside of it."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "base-uri 'none'; form-action 'none'"
    )


def thumbnail(image: np.ndarray) -> str:
    """(h, w, 3) uint8 -> a data URL of `encoded`."""
    kind, content = encoded(image)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def encoded(image: np.ndarray) -> tuple[str, bytes]:
    """(h, w, 3) uint8 -> `jpeg` and a file of at most THUMBNAIL pixels, or `png` for a small picture."""
    from PIL import Image

    picture = Image.fromarray(image)
    small = max(picture.size) <= PIXELWISE
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG") if small else picture.save(buffer, "JPEG", quality=85)
    return "png" if small else "jpeg", buffer.getvalue()


def plain(value: Any) -> Any:
    """JSON has no NaN and no numpy; both become plain values."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
