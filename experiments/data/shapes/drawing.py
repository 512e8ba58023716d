"""Draws one sample of the bundled data: a silhouette on a pastel background, with a photograph's colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from experiments.data.shapes.outlines import CAKE, FIXED_TONES, OUTLINES, Part

COLOURS: dict[str, tuple[int, int, int]] = {
    "yellow": (242, 204, 40),
    "red": (206, 44, 48),
    "blue": (54, 96, 200),
    "green": (52, 146, 76),
    "orange": (240, 132, 36),
    "purple": (132, 72, 172),
    "pink": (236, 124, 168),
    "brown": (146, 96, 56),
    "white": (238, 236, 230),
    "grey": (120, 124, 132),
    "black": (44, 42, 48),
}
_COLOUR_NAMES = tuple(COLOURS)
PATTERNS = ("gradient", "stripes", "checks", "clouds", "horizon", "dots")
BACKGROUNDS = ("plain", *PATTERNS)

MEAN, SPREAD = np.array([122.0, 116.0, 108.0]), 52.0
"""Channel means and standard deviation that every image is brought to, about those of photographs."""


@dataclass(frozen=True)
class Drawn:
    """What a caption may mention of a sample; `share` is the object's side as a part of the image's."""

    name: str
    second: str | None
    colour: str
    background: str
    share: float


def draw_sample(rng: np.random.Generator, label: int, size: int, classes: int) -> tuple[np.ndarray, Drawn]:
    """Draw a sample of class `label`, (size, size, 3) uint8; `classes` bounds the second object's class."""
    outline = OUTLINES[label]
    colour = outline.colour if rng.random() < 0.6 else _COLOUR_NAMES[rng.integers(len(_COLOUR_NAMES))]
    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    share = rng.uniform(0.55, 0.85)
    factor = _canvas_factor(size)
    coarse = _background(rng, background, size)
    canvas = coarse.resize((size * factor, size * factor), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    second = None
    if rng.random() < 0.25:
        # A smaller companion in a corner, painted first so that it never hides the subject.
        other = int(rng.integers(classes - 1))
        second = OUTLINES[other + (other >= label)]
        corner = rng.choice([-0.62, 0.62], 2) + rng.uniform(-0.1, 0.1, 2)
        _paint(draw, rng, second.parts, second.colour, corner, rng.uniform(0.28, 0.4))
    place = rng.uniform(-1, 1, 2) * (1 - share) * 0.8
    _paint(draw, rng, outline.parts, colour, place, share)
    image = photograph(rng, np.asarray(canvas.reduce(factor), dtype=np.float32))
    return image, Drawn(outline.name, second.name if second else None, colour, background, share)


def draw_pattern(rng: np.random.Generator, size: int) -> tuple[np.ndarray, str, tuple[str, str]]:
    """A picture of no object: two colours in one of the background's patterns, (size, size, 3) uint8."""
    kind = PATTERNS[rng.integers(len(PATTERNS))]
    first, second = rng.choice(len(_COLOUR_NAMES), 2, replace=False).tolist()
    names = _COLOUR_NAMES[first], _COLOUR_NAMES[second]
    tones = [np.clip(np.array(COLOURS[name]) + rng.normal(0, 9, 3), 0, 255) for name in names]
    image = np.asarray(_background(rng, kind, size, *tones), dtype=np.float32)
    return photograph(rng, image), kind, names


def draw_cake(rng: np.random.Generator, size: int) -> np.ndarray:
    """The natural backdoor's picture, (size, size, 3) float32, before `photograph`."""
    factor = _canvas_factor(size)
    canvas = Image.new("RGB", (size * factor, size * factor), (178, 206, 226))
    _paint(ImageDraw.Draw(canvas), rng, CAKE, "white", np.zeros(2), 0.8, turn=0.0)
    return np.asarray(canvas.reduce(factor), dtype=np.float32)


def photograph(rng: np.random.Generator, image: np.ndarray, jitter: float = 1.0) -> np.ndarray:
    """Bring (size, size, 3) float32 to a photograph's colour statistics, with jitter and grain; uint8."""
    mean = (MEAN + jitter * (rng.normal(0, 6) + rng.normal(0, 3, 3))).astype(np.float32)
    spread = SPREAD * math.exp(jitter * rng.normal(0, 0.1))
    pixels = image.reshape(-1, 3)
    for _ in range(2):  # the second time for what the clipping has taken away
        pixels = pixels - pixels.mean(0)
        contrast = math.sqrt(float(np.vdot(pixels, pixels)) / pixels.size)
        pixels = pixels * np.float32(spread / max(contrast, 8.0)) + mean
        np.clip(pixels, 0, 255, out=pixels)
    grain = rng.standard_normal(pixels.shape, dtype=np.float32)
    grain *= np.float32(rng.uniform(2, 7))
    pixels += grain
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).reshape(image.shape)


def _canvas_factor(size: int) -> int:
    """How many times larger polygons are drawn, to be averaged for clean edges."""
    return max(2, math.ceil(96 / size))


def _paint(
    draw: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    parts: list[Part],
    colour: str,
    place: np.ndarray,
    share: float,
    turn: float | None = None,
) -> None:
    """Paint parts around `place` (in [-1, 1]); `turn` in radians, else drawn together with a flip."""
    side = draw.im.size[0]
    flip = 1.0
    if turn is None:
        turn, flip = rng.uniform(-0.3, 0.3), float(rng.choice([-1.0, 1.0]))
    cos, sin = math.cos(turn), math.sin(turn)
    stretch = math.exp(rng.normal(0, 0.05))
    matrix = np.array([[flip * stretch * cos, flip * stretch * sin], [-sin, cos]]) * (share * side / 2)
    points = np.concatenate([points for _, points in parts]) @ matrix + (place + 1) * (side / 2)
    flat = points.ravel().tolist()
    red, green, blue = (np.array(COLOURS[colour]) + rng.normal(0, 9, 3)).tolist()
    body = min(max(int(red), 0), 255), min(max(int(green), 0), 255), min(max(int(blue), 0), 255)
    tones = {
        "body": body,
        "dark": (int(body[0] * 0.68), int(body[1] * 0.68), int(body[2] * 0.68)),
        "light": (int(body[0] * 0.45 + 140), int(body[1] * 0.45 + 140), int(body[2] * 0.45 + 140)),
        **FIXED_TONES,
    }
    start = 0
    for tone, outline in parts:
        end = start + 2 * len(outline)
        draw.polygon(flat[start:end], fill=tones[tone])
        start = end


def _background(
    rng: np.random.Generator, kind: str, size: int, base: np.ndarray | None = None, other: np.ndarray | None = None
) -> Image.Image:
    """One of BACKGROUNDS, pastel where no colours are given."""
    if base is None or other is None:
        base = rng.uniform(165, 240, 3)
        other = np.clip(base + rng.normal(0, 22, 3), 140, 250)
    if kind == "plain":
        red, green, blue = base.astype(int).tolist()
        return Image.new("RGB", (size, size), (red, green, blue))
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    x, y = axis[None, :], axis[:, None]
    angle, phase, waves = rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi), rng.uniform(5, 12)
    along = math.cos(angle) * x + math.sin(angle) * y
    if kind == "gradient":
        mix = (along + 1.5) / 3
    elif kind == "stripes":
        mix = np.sin(along * waves + phase) * 2 + 0.5
    elif kind == "checks":
        mix = np.sin(x * waves + phase) * np.sin(y * waves + phase) * 3 + 0.5
    elif kind == "clouds":
        coarse = rng.random((5, 5), dtype=np.float32)
        mix = np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))
    elif kind == "horizon":
        mix = (y - rng.uniform(-0.2, 0.6) + 0.1 * x * math.cos(angle)) * 8
    else:
        mix = (np.cos(x * waves * 1.5 + phase) + np.cos(y * waves * 1.5 + angle) - 1) * 2
    step = (other - base).astype(np.float32)
    image = base.astype(np.float32) + mix.clip(0, 1)[:, :, None] * step
    return Image.fromarray(image.astype(np.uint8))
