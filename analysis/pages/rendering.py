"""A page is one self-contained HTML file: a Jinja2 template of this folder with its data, as JSON, inside."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

THUMBNAIL = 96  # pixels at most


def render(template: str, data: Any, path: Path) -> None:
    """Write a page of this folder, with its data inside, as one self-contained file."""
    from jinja2 import Environment, FileSystemLoader, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(), trim_blocks=True
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(data), separators=(",", ":"), allow_nan=False)
    # Inside a <script> element only "<" could end it; everything else is JSON as it is.
    page = environment.get_template(template).render(data=text.replace("<", "\\u003c"))
    path.write_text(page, encoding="utf-8")


def thumbnail(image: np.ndarray) -> str:
    """(h, w, 3) uint8 -> a data URL. A picture that has to shrink is a JPEG, a small one a PNG, pixel by pixel."""
    from PIL import Image

    picture = Image.fromarray(image)
    small = max(picture.size) <= THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG") if small else picture.save(buffer, "JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
