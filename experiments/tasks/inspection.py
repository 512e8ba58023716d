"""`task=inspect`: is this model backdoored? One verdict from the triggers that are inverted for all of its classes.

In the manner of Neural Cleanse (Wang et al., IEEE S&P 2019) and CLIP-Inspector (Jindal et al., CVPR 2026): a
trigger is inverted for every class, a mask (`experiments.clip.inversion`) and a warp of the whole image
(`warp_inversion`). A class that a small mask reaches, though all others need large ones, or that warped images come
much nearer to, is the target of a backdoor (`experiments.tasks.outlier_test`). Classes differ by nature: an
anchor is drawn with fewer pixels than an apple. With `references`, models that are known to be clean, each class is
therefore compared with itself: the logarithm of its mask's size, or its margin under the warp, less the mean of
those in the references.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from experiments.clip.inversion import Choices, InversionConfig, InvertedTrigger
from experiments.clip.warp_inversion import InvertedWarp, WarpConfig
from experiments.data.test_set import read_classes
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.rows import SUCCEEDED
from experiments.pipeline.runner import Runner
from experiments.runtime import distributed
from experiments.runtime.process_pool import run_jobs
from experiments.runtime.progress import bar
from experiments.tasks.inspection_report import Inspection
from experiments.tasks.outlier_test import FEWEST, outlier_test

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inspect(InversionConfig):
    """How a model is inspected; the other settings are those of `experiments.clip.inversion.InversionConfig`.

    captions: a file with a caption on each line, to be inspected instead of the classes of the test set.
    false_alarms: share of clean models that may be called backdoored; with warps, half of it by masks and half by
        warps.
    warps: whether warps are inverted too.
    references: folders of models that are known to be clean, `<store>/train/<key>`, of the same input size.
    """

    captions: str | None = None
    false_alarms: float = 0.1
    warps: bool = True
    references: Sequence[str] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.001 <= self.false_alarms < 1:
            raise ValueError(f"task.false_alarms must lie in [0.001, 1), got {self.false_alarms}")

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, captions that are too few, and references that cannot be read."""
        if self.captions is not None:
            names = read_classes(self.captions)
            if len(names) < FEWEST:
                raise ValueError(f"task.captions must name at least {FEWEST} captions, got {len(names)}")
        for folder in self.references:
            size = self._reference(experiment, folder).model_spec.size
            if size != experiment.model_spec.size:
                raise ValueError(
                    f"task.references must have the model's input size, {experiment.model_spec.size}; "
                    f"{folder} has {size}"
                )

    def run(self, runner: Runner) -> Inspection | None:
        among = self._choices(runner)
        models = [runner, *(runner.replace(self._reference(runner.experiment, one)) for one in self.references)]
        rate = self.false_alarms / (1 + self.warps)
        masks = [self._invert(model, among, "inverted", self.how, "inverting masks") for model in models]
        verdict = outlier_test(_against([np.log([_size(one) for one in found]) for found in masks]), rate)
        warps: list[list[InvertedWarp]] = [[]]
        warp_verdict = None
        if self.warps:
            warps = [self._invert(model, among, "warped", self.how_to_warp, "inverting warps") for model in models]
            warp_verdict = outlier_test(
                _against([np.array([-one.margin for one in found]) for found in warps]), rate
            )
        if not distributed.is_main():
            return None
        result = Inspection(
            among.names, masks[0], verdict, len(self.references), self._metadata(runner), warps[0], warp_verdict
        )
        log.info("%s", result.sentence)
        return result

    @property
    def how(self) -> InversionConfig:
        """The settings of the inversion alone."""
        return InversionConfig(**{name: getattr(self, name) for name in InversionConfig.__dataclass_fields__})

    @property
    def how_to_warp(self) -> WarpConfig:
        """The settings of the warps' inversion."""
        return WarpConfig(images=self.images, batch=self.batch)

    def _choices(self, runner: Runner) -> Choices:
        if self.captions is not None:
            return Choices(read_classes(self.captions))
        test = runner.value("test")
        if len(test.classes) < FEWEST:
            raise ValueError(
                f"the test set has {len(test.classes)} classes, and an inspection needs at least {FEWEST}; give "
                "eval=... with more, or task.captions, a file with a caption on each line"
            )
        return Choices(test.classes, test.templates)

    def _invert(self, runner: Runner, among: Choices, gives: str, how: Any, label: str) -> list[Any]:
        """A stage's value for each name: from the store, or computed, on a CPU in `runtime.workers` processes."""
        runner.entry("trained")  # here, once: all processes read it
        runner.value("test"), runner.value("clean")
        workers = runner.resources.workers if runner.resources.device == "cpu" else 1
        if workers > 1 and distributed.world_size() == 1:
            config = OmegaConf.to_yaml(runner.experiment.config)
            recipes = {n: runner.recipe(gives, {"name": n, "among": among, "how": how}) for n in among.names}
            missing = [name for name, recipe in recipes.items() if not runner.store.has(recipe)]
            jobs = [(config, gives, name, among.names, among.templates, how) for name in missing]
            with bar(len(recipes), label, "class", done=len(recipes) - len(missing)) as progress:
                for _ in run_jobs(_invert_one, jobs, workers):
                    progress.update(1)
        found = []
        with bar(len(among.names), label, "class") as progress:
            for name in among.names:
                found.append(runner.value(gives, name=name, among=among, how=how))
                progress.update(1)
                if len(found) % 10 == 0 or len(found) == len(among.names):
                    log.info("%s: %d of %d classes", label, len(found), len(among.names))
        return found

    def _reference(self, experiment: Experiment, folder: str) -> Experiment:
        model = OmegaConf.create({"_target_": "experiments.clip.Trained", "folder": folder})
        return experiment.replace(model=model)

    def _metadata(self, runner: Runner) -> dict[str, Any]:
        """What the row says of the model; `backdoored` where this experiment planted the attack itself."""
        experiment = runner.experiment
        row = {name: experiment.labels[name] for name in ("attack", "data", "model", "train_on", "seed")}
        row["trained"] = runner.entry("trained").key
        if not experiment.attack.targets or not len(runner.value("test")):
            return row | {"asr": None, "backdoored": False if experiment.model_spec.trains else None, "target": ""}
        asr = runner.value("measures").get("asr")
        planted = asr is not None and asr >= SUCCEEDED
        return row | {"asr": asr, "backdoored": planted, "target": experiment.labels["target"]}


def _size(trigger: InvertedTrigger) -> float:
    """Share of the image that the trigger covers; all of it where none was found."""
    return trigger.area if trigger.reached else 1.0


def _against(values: Sequence[np.ndarray]) -> np.ndarray:
    """(classes,) of the model, less the mean of those of the references."""
    own, *others = values
    return own - np.mean(others, axis=0) if others else own


@functools.lru_cache(maxsize=1)
def _runner(config: str) -> Runner:
    return Runner.of(DictConfig(OmegaConf.create(config)))


@functools.lru_cache(maxsize=1)
def _among(names: tuple[str, ...], templates: tuple[str, ...]) -> Choices:
    return Choices(names, templates)


def _invert_one(job: tuple[str, str, str, tuple[str, ...], tuple[str, ...], Any]) -> None:
    """In a process of its own: put what the stage gives for one name into the store."""
    config, gives, name, names, templates, how = job
    _runner(config).entry(gives, name=name, among=_among(names, templates), how=how)
