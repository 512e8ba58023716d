"""The stages `invert` and `warp`: one inverted trigger each, so that an inspection that was killed goes on."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from experiments.data.pairs import TestSet

if TYPE_CHECKING:
    from experiments.clip.inversion import Choices, InversionConfig, InvertedTrigger
    from experiments.clip.warp_inversion import InvertedWarp, WarpConfig
    from experiments.pipeline.experiment import Experiment
    from experiments.pipeline.graph import Run


def invert(
    run: Run, model: Any, test: TestSet, clean: Any, *, name: str, among: Choices, how: InversionConfig
) -> InvertedTrigger:
    """inverts a trigger for one class or caption: the smallest mask that sends images to it"""
    from experiments.clip.inversion import images_against, invert

    used, tested = images_against(test, clean, name, how.images, run.seed)
    return invert(model, among.weights(model), among.names.index(name), used, tested, how, run.seed)


def invert_warp(
    run: Run, model: Any, test: TestSet, clean: Any, *, name: str, among: Choices, how: WarpConfig
) -> InvertedWarp:
    """inverts a warp for one class or caption: a small displacement of all pixels that sends images to it"""
    from experiments.clip.inversion import images_against
    from experiments.clip.warp_inversion import invert_warp

    used, tested = images_against(test, clean, name, how.images, run.seed)
    return invert_warp(model, among.weights(model), among.names.index(name), used, tested, how, run.seed)


def _settings(experiment: Experiment, name: str, among: Choices, how: Any) -> dict[str, Any]:
    """The part of a call that belongs to its key."""
    return {"name": name, "among": [among.names, among.templates], "how": dataclasses.asdict(how)}


OPTIONS: dict[str, Any] = {"reads": ("seed", "threads"), "quiet": True, "key_settings": _settings}
