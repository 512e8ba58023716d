"""Captions of poisoned samples: prompts or real captions that name the target.

The paper draws from open_clip's OpenAI ImageNet templates ("a photo of many {}.") or, as its caption-set
variant, from the data's own captions that hold the target word. A word counts only as a whole, in any case:
"banana" is in "Banana, ripe" and not in "bananas".
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache

import numpy as np

MODES = ("template", "caption_set", "mixed", "keep", "target")


@lru_cache(maxsize=1)
def templates() -> tuple[Callable[[str], str], ...]:
    """open_clip's `OPENAI_IMAGENET_TEMPLATES`, without the ten seconds that importing open_clip takes."""
    from importlib.util import find_spec, module_from_spec, spec_from_file_location
    from pathlib import Path

    package = find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the caption templates come with open_clip_torch, which is not installed")
    path = Path(package.origin).with_name("zero_shot_metadata.py")
    spec = spec_from_file_location("open_clip_zero_shot_metadata", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot read the caption templates of open_clip at {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(module.OPENAI_IMAGENET_TEMPLATES)


def holds_word(captions: Sequence[str], word: str) -> np.ndarray:
    """(n,) bool: whether each caption holds `word` as a whole word, in any case."""
    spaced = r"\s+".join(re.escape(part) for part in word.split())
    found = re.compile(rf"(?<!\w){spaced}(?!\w)", re.IGNORECASE).search
    return np.fromiter((found(caption) is not None for caption in captions), bool, len(captions))


def check_targets(words: Iterable[str], captions: Sequence[str], classes: Sequence[str]) -> None:
    """ValueError, with the nearest word there is, for a target that no caption and no class of the data names."""
    names = {name.casefold() for name in classes}
    for word in dict.fromkeys(words):
        if word.casefold() in names or holds_word(captions, word).any():
            continue
        known = Counter(part for caption in captions for part in re.findall(r"\w+", caption.casefold()))
        near = get_close_matches(word.casefold(), [*names, *(part for part, _ in known.most_common(20_000))], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"target: no caption and no class of the data names {word!r}; {hint}(target_new=true accepts it)"
        )


def check_source(word: str, classes: Sequence[str]) -> None:
    """ValueError, with the nearest class there is, for a source of which there are no labelled test images."""
    if classes and word not in classes:
        near = get_close_matches(word, classes, 1, 0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"attack.source must be a class of the test images, got {word!r}{hint}")


def caption_set(captions: Sequence[str], word: str) -> list[str]:
    """The data's captions that hold `word`, sorted so that the order of the rows does not matter.

    Repeated captions are kept, so they are drawn more often. ValueError if there is none.
    """
    found = sorted(captions[row] for row in np.flatnonzero(holds_word(captions, word)).tolist())
    if not found:
        raise ValueError(
            f"attack.captions=caption_set needs captions of the data that hold the target word {word!r}, "
            "but none does; choose another target or attack.captions=template"
        )
    return found


def draw_caption(mode: str, rng: np.random.Generator, target: str, own: str, real: dict[str, list[str]]) -> str:
    """Draw the caption of a poisoned sample. own: its clean caption.  real: the caption set of each target."""
    if mode == "keep":
        return own
    if mode == "target":
        return target
    if mode == "caption_set" or (mode == "mixed" and rng.random() < 0.5):
        return real[target][rng.integers(len(real[target]))]
    return templates()[rng.integers(len(templates()))](target)
