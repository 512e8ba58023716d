"""`task=defences`: compares removing the suspects with ways to train that are meant to need no removal.

All of them get the same poisoned data: as usual, by each of `ways`, and without the samples that the scan ranks
first. A training on clean data shows the best possible result.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.runtime import distributed
from experiments.tasks.retrain import (
    COLUMNS,
    Retrained,
    Suspects,
    check_shares,
    clean_row,
    row_without,
    training_row,
)

SUBSET = 3  # which stream of random numbers


@dataclass(frozen=True)
class Defence:
    """A way to train.

    name: its row in the table.
    train: what differs from the configuration's `train`.
    finetune: None: it trains from scratch on the poisoned data. Otherwise the model that saw them is trained on,
        with this share of the pairs as they were before the attack: those that a defender has checked.
    """

    name: str
    train: Mapping[str, Any]
    finetune: float | None = None

    def __post_init__(self) -> None:
        if self.finetune is not None and not 0 < self.finetune <= 1:
            raise ValueError(f"task.ways: finetune of {self.name} must lie in (0, 1], got {self.finetune}")

    def training(self, experiment: Experiment) -> DictConfig:
        """The experiment's `train` with this defence's differences; a setting that does not exist is refused."""
        config = copy.deepcopy(experiment.config.train)
        for name, value in self.train.items():
            if name not in config:
                raise ValueError(f"task.ways: {self.name} sets train.{name}, which does not exist")
            OmegaConf.update(config, name, value, merge=False)  # a loss is replaced, with all its weights
        return config

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, settings that cannot be trained with."""
        from hydra.utils import instantiate

        training = instantiate(self.training(experiment))
        pairs = getattr(experiment.source, "pairs", None)
        if self.finetune and pairs and round(self.finetune * pairs) < training.batch_size:
            raise ValueError(
                f"task.ways: finetune of {self.name} must leave a batch of {training.batch_size} pairs, "
                f"got {self.finetune} of {pairs}"
            )

    @property
    def extra_passes(self) -> int:
        """Images that pass through the model beside the training."""
        return 0

    def runner(self, runner: Runner) -> Runner:
        """What is trained, which for a fine-tuning first trains `runner`'s model."""
        training = self.training(runner.experiment)
        if self.finetune is None:
            return runner.replace(runner.experiment.replace(train=training))
        model = {
            "_target_": "experiments.clip.Trained",
            "folder": str(runner.entry("trained").path),
            "finetune": True,
        }
        experiment = runner.experiment.replace(train=training, train_on="clean", model=OmegaConf.create(model))
        ids = np.asarray(runner.value("clean").ids)
        order = np.random.default_rng([experiment.seed, SUBSET]).permutation(len(ids))
        return runner.replace(experiment, train_ids=np.sort(ids[order[: round(self.finetune * len(ids))]]))


@dataclass(frozen=True)
class Defences:
    """ways: to train, by any name.  rank_by, holdout: of the scan.  shares: of the samples, removed by its
    ranking before another training each.

    A row's `trainings` is what all of its trainings cost: pairs and augmented pairs that pass through the model, in
    multiples of the undefended training. The passes of the scan, which trains nothing, come on top.
    """

    rank_by: str = "density"
    holdout: float = 0.0
    shares: Sequence[float] = (0.1,)
    ways: Mapping[str, Defence] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_shares("shares", self.shares)
        _ = self.suspects.scan  # refuses its own settings

    @property
    def suspects(self) -> Suspects:
        return Suspects(self.rank_by, self.holdout, self.shares)

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, settings of a way that cannot be trained with."""
        self.suspects.check(experiment, "defences")
        for way in self.ways.values():
            way.check(experiment)

    def run(self, runner: Runner) -> Retrained | None:
        truth = runner.value("truth")
        rows = [training_row(runner, "undefended", truth) | {"trainings": 1.0}]
        for way in self.ways.values():
            tried = way.runner(runner)
            cost = (_passes(tried) + way.extra_passes) / _passes(runner) + (way.finetune is not None)
            rows.append(training_row(tried, way.name, truth) | {"trainings": cost})
        order, _ = self.suspects.found(runner)
        for share in self.shares:
            removed = order[: round(share * len(order))]
            row = row_without(runner, f"retrained, {100 * share:g} % less by the ranking", removed)
            rows.append(row | {"trainings": 2 - share})
        rows.append(clean_row(runner) | {"trainings": 1.0})
        for row in rows:
            runner.entry("defended", row=runner.experiment.labels | row)
        columns = {name: text for name, text in COLUMNS.items() if name != "removed"}
        columns |= {"trained_on": "model", "trainings": "cost"}
        return Retrained(rows, "Defences", columns) if distributed.is_main() else None


def _passes(runner: Runner) -> int:
    """Pairs that pass through the model in its training, and altered views beside them."""
    training = runner.experiment.training
    views = 2 if training.objective.augmented_views is True else 1
    return training.epochs * len(runner.value("train_ids")) * views
