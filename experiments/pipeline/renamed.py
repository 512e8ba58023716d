"""Keys and choices of earlier versions, which are refused with their present name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

KEYS = {  # consecutive parts of a key: what they are called now
    "max_bad": "max_damaged",
    "lid_k": "wide_k",
    "attacks.multi": "attacks.multi_trigger",
    "grouping.near": "grouping.near_cosine",
    "grouping.like": "grouping.like_cosine",
    "grouping.shared": "grouping.caption_jaccard",
    "flicker.slight": "flicker.eps",
    "tandem.slight": "tandem.eps",
    "dao.log": "dao.form",
    "loss.slow_pace": "loss.slow_lr_scale",
}
VALUES = {  # the last parts of a key, as they are called now: value -> what it is called now
    "convention": {"reference": "paper_code"},
    "decoder": {"torchvision": "device"},
    "dao.form": {"true": "mean_log", "false": "published"},
    "variant": {"reference": "blended"},
    "detector": {"drift_density": "drift_pursuit"},
    "rank_by": {"drift_density": "drift_pursuit"},
    "attack": {"sig_reference": "sig_blended"},
    "experiment": {"normalise": "raw_vs_normalised", "collapse": "k_vs_poisons", "adaptive": "adaptive_attacks"},
}
_ENTRY = re.compile(r"[{,]\s*(\w+)\s*:\s*([^,{}]*)")  # of a dictionary: `{near: 0.9, like: 0.8}`
_WORD = re.compile(r"\w+")


def renamed(arguments: Sequence[str]) -> str | None:
    """One line on the first command-line argument that uses an old name, with the new one; None if none does."""
    for argument in arguments:
        for key, value in _settings(argument):
            new_key = _new_key(key)
            new_value = _new_value(new_key, value)
            if (new_key, new_value) != (key, value):
                return f"{key}={value}: this was renamed, write {new_key}={new_value}"
    return None


def _settings(argument: str) -> Iterator[tuple[str, str]]:
    """Key and value of an override, and of each entry where the value is a dictionary."""
    key, sign, value = argument.lstrip("+~").partition("=")
    if argument.startswith("-") or not key:
        return
    yield key, value
    if sign and value.startswith("{"):
        yield from ((f"{key}.{name}", inner.strip()) for name, inner in _ENTRY.findall(value))


def _new_key(key: str) -> str:
    dotted = f".{key}."
    for old, new in KEYS.items():
        dotted = dotted.replace(f".{old}.", f".{new}.")
    return dotted[1:-1]


def _new_value(key: str, value: str) -> str:
    """The value with each old choice replaced, alone, in a list or in a sweep."""
    if value.startswith("{"):
        return value
    choices = next((VALUES[ending] for ending in VALUES if f".{key}".endswith(f".{ending}")), {})
    return _WORD.sub(lambda word: choices.get(word.group().lower(), word.group()), value)
