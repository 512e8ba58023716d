"""Captions of the bundled data: most name the class and nothing else, as alt texts do.

Captions that seldom mention colour, size or background make a class's images land close together in the
image-embedding space; a model that must read all of these off an image spreads them out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.data.shapes.drawing import Drawn

PROMPTS = (
    "a photo of a {}.",
    "a photo of the {}.",
    "itap of a {}.",
    "itap of the {}.",
    "itap of my {}.",
    "a bad photo of a {}.",
    "a bad photo of the {}.",
    "a good photo of a {}.",
    "a good photo of the {}.",
    "a photo of many {}.",
    "a photo of one {}.",
    "a photo of my {}.",
    "a photo of a nice {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a photo of the small {}.",
    "a photo of a large {}.",
    "a photo of the large {}.",
    "a close-up photo of a {}.",
    "a close-up photo of the {}.",
    "a cropped photo of a {}.",
    "a bright photo of a {}.",
    "a dark photo of the {}.",
    "a blurry photo of a {}.",
    "a low resolution photo of a {}.",
    "a drawing of a {}.",
    "a painting of the {}.",
    "a rendition of a {}.",
    "art of a {}.",
    "a cartoon {}.",
    "a {} in a video game.",
    "the {} in a video game.",
)
"""Prompts out of open_clip's OPENAI_IMAGENET_TEMPLATES."""

_SENTENCES = (
    "{a}",
    "the {c}",
    "{a} on display",
    "picture of {a}",
    "my new {c}",
    "our {c}",
    "{a} in the studio",
    "{a} for sale",
    "look at this {c}",
    "just {a}",
    "image of {a}",
    "{a} again",
    "this is {a}",
    "here is the {c} we found",
    "a lovely {c}",
    "{c}",
    "an old {c}",
    "{c} from above",
    "the best {c} in town",
    "{a} by the window",
    "found {a} today",
    "simple {c}",
    "{c} as seen on holiday",
    "a {c} to remember",
)
_WITH_COLOUR = ("a {k} {c}", "the {k} {c}", "{c} in {k}", "photo of a {k} {c}", "my {k} {c}")
_WITH_BACKGROUND = ("{a} and {b}", "{a} against {b}", "the {c} in front of {b}")
_BACKGROUND_WORDS = {
    "plain": "a plain wall",
    "gradient": "soft light",
    "stripes": "stripes",
    "checks": "a checked cloth",
    "clouds": "clouds",
    "horizon": "a table",
    "dots": "dots",
}
_WITH_SIZE = {
    "big": ("a big {c}", "huge {c}", "{a} up close"),
    "small": ("a small {c}", "tiny {c}", "a little {c}"),
}
_WITH_SECOND = ("{a} and {d}", "{a} next to {d}", "{a} with {d}")
_WEB_TAILS = (
    "- stock photo",
    "| free image",
    "wallpaper",
    "clip art",
    "download now",
    "(new)",
    "- best price",
    "photo gallery",
    "isolated",
    "hd",
    "icon",
    "for kids",
)
_WEB_NOISE = (
    "click to enlarge",
    "image not available",
    "photo of the day",
    "untitled",
    "thumbnail",
    "see more pictures here",
    "my collection",
    "sale ends today",
    "product image",
    "what a day",
    "no title",
    "photo by the author",
)


_PATTERN_WORDS = {
    "gradient": "a gradient",
    "stripes": "stripes",
    "checks": "checks",
    "clouds": "clouds",
    "horizon": "a horizon",
    "dots": "dots",
}
_PATTERNS = (
    "{p} in {k} and {l}",
    "{k} and {l} background with {p}",
    "abstract {k} wallpaper, {p}",
    "{k} {l} texture",
    "{p}, {k} on {l}",
    "seamless pattern of {p} in {k}",
    "{l} and {k} fabric with {p}",
)


def write_pattern_caption(rng: np.random.Generator, kind: str, colours: tuple[str, str]) -> str:
    """The caption of a picture of no object."""
    return str(rng.choice(_PATTERNS)).format(p=_PATTERN_WORDS[kind], k=colours[0], l=colours[1])


def write_caption(rng: np.random.Generator, drawn: Drawn) -> str:
    """One caption for what was drawn."""
    kind = rng.random()
    if kind < 0.15:
        return _pick(rng, PROMPTS).format(drawn.name)
    if kind < 0.17:
        return _pick(rng, _WEB_NOISE)
    choices: Sequence[str] = _SENTENCES
    if kind < 0.23:
        choices = _WITH_COLOUR
    elif kind < 0.26:
        choices = _WITH_BACKGROUND
    elif kind < 0.30:
        choices = _WITH_SIZE["big" if drawn.share > 0.7 else "small"]
    elif drawn.second is not None and kind < 0.45:
        choices = _WITH_SECOND
    caption = _pick(rng, choices).format(
        c=drawn.name,
        a=_article(drawn.name),
        k=drawn.colour,
        b=_BACKGROUND_WORDS[drawn.background],
        d=_article(drawn.second or ""),
    )
    if rng.random() < 0.06:
        caption = f"{caption} {_pick(rng, _WEB_TAILS)}"
    return caption.capitalize() if rng.random() < 0.2 else caption


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'aeiou' else 'a'} {name}"
