"""The model that was trained half as long, which `detect.Agreement` compares with the model itself.

A training keeps no early checkpoint, so this is a training of its own, of half the epochs with its own schedule. It
is the one that `experiment=epochs` trains too, and it costs half of the model's own training.
"""

from __future__ import annotations

from typing import Any


def half_as_long(experiment: Any) -> dict[str, Any]:
    """What of the configuration differs, for `Call.changes`."""
    epochs = max(experiment.training.epochs // 2, 1)
    warmup = min(experiment.config.train.warmup_epochs, epochs / 2)
    return {"train": {"epochs": epochs, "warmup_epochs": warmup}}


def check_earlier(experiment: Any) -> None:
    """ValueError if a detector needs such a model and there cannot be one."""
    names = [name for name, detector in experiment.detectors.items() if "earlier" in detector.needs]
    if not names:
        return
    if not experiment.model_spec.trains:
        raise ValueError(
            f"detector={names[0]} compares the model with one trained half as long, and this model was not trained "
            "here; leave the detector out"
        )
    if experiment.training.epochs < 2:
        raise ValueError(
            f"detector={names[0]} compares the model with one trained half as long; train.epochs must be at least "
            f"2, got {experiment.training.epochs}"
        )
