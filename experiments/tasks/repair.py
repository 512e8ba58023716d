"""`task=repair`: invert a target's trigger, and teach the model that it means nothing.

In the manner of InverTune (Sun et al., NDSS 2026, arXiv 2506.12411), which inverts a trigger and then tunes the
activations that it excites. We fine-tune the whole model, with CLIP's loss, on images that carry the inverted
trigger and keep their own captions, as CLIP-Inspector's repair does. A defender has checked these pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import OmegaConf

from experiments.clip.inversion import Choices, InversionConfig
from experiments.pipeline.experiment import Experiment
from experiments.pipeline.runner import Runner
from experiments.pipeline.values import with_targets
from experiments.runtime import distributed
from experiments.tasks.defences import Defence
from experiments.tasks.retrain import COLUMNS, Retrained, training_row


@dataclass(frozen=True)
class Repair(Defence):
    """A fine-tuning on pairs of which a part carries the inverted trigger.

    target: the class whose trigger is inverted; None: the attack's target class.
    painted: share of the images that carry it.
    inversion: settings of `experiments.clip.inversion.InversionConfig`.
    """

    target: str | None = None
    painted: float = 0.5
    inversion: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.how  # refuses its own settings
        if self.finetune is None:
            raise ValueError(f"{self.name} fine-tunes a model; finetune must lie in (0, 1], got null")
        if not 0 < self.painted <= 1:
            raise ValueError(f"painted of {self.name} must lie in (0, 1], got {self.painted}")

    @property
    def how(self) -> InversionConfig:
        unknown = set(self.inversion) - set(InversionConfig.__dataclass_fields__)
        if unknown:
            raise ValueError(f"inversion of {self.name} has no setting {sorted(unknown)[0]!r}")
        return InversionConfig(**self.inversion)

    def runner(self, runner: Runner) -> Runner:
        """`runner`'s model, fine-tuned; its trigger is inverted first."""
        target = self.target or runner.experiment.target
        test = with_targets(runner.value("test"), [target])
        among = Choices(test.classes, test.templates)
        entry = runner.entry("inverted", name=target, among=among, how=self.how)
        tuned = super().runner(runner)
        train = tuned.experiment.config.train.copy()
        augment = {
            "_target_": "experiments.training.Painted",
            "trigger": str(entry.path / "trigger.npz"),
            "share": self.painted,
            "moved": True,
            "augment": OmegaConf.to_container(train.augment, resolve=True) if train.augment else None,
        }
        OmegaConf.update(train, "augment", augment, merge=False)
        return tuned.replace(tuned.experiment.replace(train=train))

    @property
    def extra_passes(self) -> int:
        return self.how.steps * self.how.batch


@dataclass(frozen=True)
class RepairModel:
    """way: how the model is repaired."""

    way: Repair

    def check(self, experiment: Experiment) -> None:
        """Refuse, before any work, settings that cannot be trained with."""
        self.way.check(experiment)

    def run(self, runner: Runner) -> Retrained | None:
        truth = runner.value("truth")
        rows = [training_row(runner, "before", truth)]
        rows.append(training_row(self.way.runner(runner), self.way.name, truth))
        columns = {name: text for name, text in COLUMNS.items() if name not in ("removed", "poisons_left")}
        return Retrained(rows, "Repair", columns | {"trained_on": "model"}) if distributed.is_main() else None
