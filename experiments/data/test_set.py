"""Class names, prompt templates and labels for evaluation, and the choice of what is held out of a data set."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from attacks.mixing import GAMMA, SPLITMIX64, mixed


def prompt_templates() -> tuple[str, ...]:
    """open_clip's 80 OpenAI ImageNet templates, with `{}` for the class name."""
    from attacks.captions import templates

    return tuple(template("{}") for template in templates())


def text_lines(file: str | Path) -> list[str]:
    """Lines of a UTF-8 text, without surrounding space or a byte-order mark; a ValueError names the file."""
    try:
        return [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not in UTF-8: {error.reason} at byte {error.start}") from None


def read_classes(classes: str | Sequence[str]) -> tuple[str, ...]:
    """Class names, unique: given, or from a file with one on each line (`#` starts a comment)."""
    if isinstance(classes, str):
        names = [line.split("#")[0].strip() for line in text_lines(classes)]
    else:
        names = [str(name).strip() for name in classes]
    unique = tuple(dict.fromkeys(name for name in names if name))
    if len(unique) < 2:
        raise ValueError(f"zero-shot classification needs at least 2 class names, got {len(unique)} from {classes}")
    return unique


def caption_labels(captions: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """(n,) int64 position of the one class that a caption names as whole words, in any case; else -1.

    A class inside the words of a longer one does not count: "pine tree" is not "tree".
    """
    if not classes:
        return np.full(len(captions), -1, dtype=np.int64)
    lowered = {" ".join(name.lower().split()): label for label, name in enumerate(classes)}
    longest_first = sorted(lowered, key=len, reverse=True)
    spaced = [r"\s+".join(map(re.escape, name.split())) for name in longest_first]
    search = re.compile(rf"(?<!\w)(?:{'|'.join(spaced)})(?!\w)").findall
    labels = np.full(len(captions), -1, dtype=np.int64)
    for row, caption in enumerate(captions):
        found = {lowered[" ".join(name.split())] for name in search(caption.lower())}
        if len(found) == 1:
            labels[row] = found.pop()
    return labels


def frequent_words(captions: Sequence[str], number: int) -> tuple[str, ...]:
    """The words of at least 3 letters in most captions, short of those in more than a quarter of them."""
    if number < 2:
        raise ValueError(f"data.classes must be at least 2 words, got {number}")
    common = {"the", "and", "with", "for", "from", "that", "this", "are", "was", "has", "photo", "image", "picture"}
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update({word for word in caption.lower().split() if word.isalpha() and len(word) > 2} - common)
    words = [word for word, count in counts.items() if 2 <= count <= max(2, len(captions) / 4)]
    if len(words) < 2:
        raise ValueError(
            f"the {len(captions):,} captions hold fewer than 2 frequent words (in at least 2 captions, in at most "
            "a quarter); give data.classes, a list or a file of class names, or data.holdout=0 to evaluate nothing"
        )
    return tuple(sorted(sorted(words, key=lambda word: (-counts[word], word))[:number]))


def held_out(
    ids: np.ndarray,
    captions: Sequence[str],
    classes: Sequence[str],
    share: float,
    seed: int,
    most: int | None = None,
) -> np.ndarray:
    """(n,) class of every sample that is held out for evaluation, -1 for those to train on.

    share: of the samples whose caption names exactly one class; at most `most` are held out.  Raises ValueError if
    no caption names one.
    """
    if share == 0:
        return np.full(len(captions), -1)
    labels = caption_labels(captions, classes)
    if not (labels >= 0).any():
        raise ValueError(
            f"no caption names exactly one of the {len(classes)} classes of data.classes "
            f"({', '.join(classes[:8])}, ...); give other classes, or data.holdout=0 to evaluate nothing"
        )
    shares = seeded_shares(ids, seed)
    chosen = np.flatnonzero((labels >= 0) & (shares < share))
    chosen = chosen[np.argsort(shares[chosen], kind="stable")][:most]
    found = np.full(len(captions), -1)
    found[chosen] = labels[chosen]
    return found


SHARE_ROUNDS = tuple((29, multiplier) for _, multiplier in (*SPLITMIX64, SPLITMIX64[0]))
"""A mixing of its own, so that the held-out rows do not depend on a plan's keys, which use `SPLITMIX64`."""


def seeded_shares(ids: np.ndarray, seed: int) -> np.ndarray:
    """(n,) numbers in [0, 1), each from (seed, id) alone, so that no sample affects another."""
    start = np.uint64((seed * GAMMA + 0x632BE59BD9B4E019) % 2**64)
    with np.errstate(over="ignore"):
        states = np.asarray(ids).astype(np.uint64) + start
    return (mixed(states, SHARE_ROUNDS, last=32) >> np.uint64(11)).astype(np.float64) / 2.0**53
