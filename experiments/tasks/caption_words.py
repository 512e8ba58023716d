"""Captions as sets of words: which say nearly the same, and which one leads a group."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence


@functools.lru_cache(maxsize=1 << 18)
def words_of(caption: str) -> frozenset[str]:
    """The words of a caption in lower case, numbers left out: "icon 3" and "icon 4" are one caption."""
    return frozenset(re.findall(r"[^\W\d_]+", caption.lower()))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """Share of words in common; 1 for two empty sets."""
    union = len(a | b)
    return len(a & b) / union if union else 1.0


def leading_caption(captions: Sequence[str], shared: float) -> tuple[str, float]:
    """The caption that most others come close to, and the share that does."""
    counts = Counter(captions)
    sets = {caption: words_of(caption) for caption in counts}
    best, most = captions[0], 0
    for caption, _ in counts.most_common(20):
        close = sum(times for other, times in counts.items() if jaccard(sets[caption], sets[other]) >= shared)
        if close > most:
            best, most = caption, close
    return best, most / len(captions)
