"""Silhouettes of the bundled data's classes, as polygons in [-1, 1] x [-1, 1] (x right, y down).

A silhouette is a list of parts, painted in order; a part is a tone and its (m, 2) points. Tones: "body" is
the sample's colour, "dark" and "light" are made from it, and the others are fixed.
They are listed in `silhouettes`; what is computed from a formula is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from experiments.data.shapes.silhouettes import CAKE_PARTS, SILHOUETTES

Part = tuple[str, np.ndarray]

FIXED_TONES = {
    "white": (244, 242, 236),
    "black": (38, 36, 40),
    "grey": (138, 140, 146),
    "leaf": (74, 148, 66),
    "wood": (128, 86, 52),
    "flame": (250, 148, 36),
    "bun": (226, 160, 84),
    "patty": (104, 60, 40),
    "cheese": (252, 204, 62),
}


def poly(tone: str, *coordinates: float) -> Part:
    """A polygon with its corners as x, y, x, y, ..."""
    return tone, np.array(coordinates, dtype=np.float64).reshape(-1, 2)


def rect(tone: str, x0: float, y0: float, x1: float, y1: float) -> Part:
    return poly(tone, x0, y0, x1, y0, x1, y1, x0, y1)


def ellipse(
    tone: str, x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, n: int = 24
) -> Part:
    """A filled ellipse, or its slice between two angles in degrees, clockwise from the right."""
    angle = np.radians(np.linspace(start, end, n, endpoint=end - start < 360))
    return tone, np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def ring(
    tone: str,
    x: float,
    y: float,
    radius: float,
    width: float,
    start: float = 0,
    end: float = 360,
    n: int = 24,
) -> Part:
    """A band of the given width inside `radius`, between two angles."""
    angle = np.radians(np.linspace(start, end, n))
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    band = np.concatenate([circle * radius, circle[::-1] * (radius - width)])
    return tone, band + np.array([x, y])


def stroke(tone: str, x0: float, y0: float, x1: float, y1: float, width: float) -> Part:
    along = np.array([x1 - x0, y1 - y0])
    side = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
    a, b = np.array([x0, y0]), np.array([x1, y1])
    return tone, np.stack([a + side, b + side, b - side, a - side])


def mirrored(part: Part) -> Part:
    return part[0], part[1] * (-1, 1)


def banana() -> list[Part]:
    angle = np.radians(np.linspace(15, 165, 18))
    outer = np.stack([0.98 * np.cos(angle), 1.2 * np.sin(angle) - 0.6], 1)
    inner = np.stack([0.86 * np.cos(angle), 0.52 * np.sin(angle) - 0.52], 1)[::-1]
    middle = np.stack([0.92 * np.cos(angle), 0.86 * np.sin(angle) - 0.56], 1)[::-1]
    return [
        ("body", np.concatenate([outer, inner])),
        ("dark", np.concatenate([outer, middle])),
        stroke("wood", -0.9, -0.26, -0.98, -0.56, 0.2),
        stroke("black", 0.86, -0.34, 0.96, -0.36, 0.16),
    ]


def star() -> list[Part]:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    return [("body", points), ("light", points * 0.5)]


def heart() -> list[Part]:
    t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16 - 0.1
    points = np.stack([np.sin(t) ** 3, y], 1)
    return [("body", points), ellipse("light", -0.45, -0.42, 0.2, 0.16)]


CURVES: dict[str, Callable[[], list[Part]]] = {"banana": banana, "star": star, "heart": heart}
SHAPES: dict[str, Callable[..., Part]] = {f.__name__: f for f in (poly, rect, ellipse, ring, stroke)}


@dataclass(frozen=True)
class Outline:
    """One class: its parts, and the colour that most of its samples have."""

    name: str
    colour: str
    parts: list[Part]


def parse_part(line: str) -> Part:
    """'[mirrored] <function> <tone> <numbers>' -> the part."""
    *flips, shape, tone = [word for word in line.split() if word[-1].isalpha()]
    numbers = [float(word) for word in line.split() if not word[-1].isalpha()]
    part = SHAPES[shape](tone, *numbers)
    return mirrored(part) if flips else part


def parse_outline(lines: list[str]) -> Outline:
    """A class from its heading, 'name, colour', and the lines of its parts."""
    name, colour = lines[0].split(", ")
    curved = lines[1].strip() == "curves"
    return Outline(name, colour, CURVES[name]() if curved else [parse_part(line) for line in lines[1:]])


def parse_outlines(text: str) -> tuple[Outline, ...]:
    """All classes, in the order of the text."""
    return tuple(parse_outline(block.splitlines()) for block in text.strip().split("\n\n"))


OUTLINES = parse_outlines(SILHOUETTES)

CAKE = [parse_part(line) for line in CAKE_PARTS.strip().splitlines()]
"""The picture of the natural backdoor: a birthday cake with candles in the form of a number."""
