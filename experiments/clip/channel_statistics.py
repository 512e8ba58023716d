"""Channel means and standard deviations of images, given by name or as numbers (`model.mean`, `model.std`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Given = Sequence[float] | str | None

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Channel means and standard deviations that go by a name, as `model.mean=openai`."""


def channel_statistics(mean: Given, std: Given, auto: tuple[Any, Any]) -> tuple[Any, Any]:
    """(mean, std) with names resolved and `auto` filled in; None for those that change nothing."""
    resolved = []
    for which, given in enumerate((mean, std if std != "auto" else mean)):
        label = ("mean", "std")[which]
        if given == "auto":
            given = auto[which]
        elif isinstance(given, str):
            if given not in STATISTICS:
                choices = ", ".join(["auto", *STATISTICS])
                raise ValueError(f"model.{label} must be three numbers, null or one of {choices}, got {given!r}")
            given = STATISTICS[given][which]
        elif which and std == "auto" and given is not None:
            raise ValueError("model.std must be given where model.mean is three numbers")
        if given is not None and len(given) != 3:
            raise ValueError(f"model.{label} must be three numbers, got {given!r}")
        if given is not None and not all(math.isfinite(x) and (x > 0 or not which) for x in map(float, given)):
            rule = "above 0 and finite" if which else "finite"
            raise ValueError(f"model.{label} must be {rule}, got {given!r}")
        resolved.append(None if given is None else tuple(float(x) for x in given))
    if (resolved[0] is None) != (resolved[1] is None):
        raise ValueError(f"model.mean and model.std go together, got {mean!r} and {std!r}")
    return (None, None) if resolved == [(0.0,) * 3, (1.0,) * 3] else (resolved[0], resolved[1])
