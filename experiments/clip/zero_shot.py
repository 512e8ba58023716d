"""Zero-shot classification: clean accuracy and attack success rate (ASR)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from attacks import Attack
from experiments.clip.model import TrainedModel
from experiments.data.pairs import TestSet

BATCH = 512


@torch.inference_mode()
def class_weights(model: TrainedModel, classes: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Mean unit-length text embedding of each class over prompts with one `{}`, (d, classes)."""
    from open_clip import build_zero_shot_classifier

    return build_zero_shot_classifier(
        model.clip, model.tokenizer, list(classes), list(templates), num_classes_per_batch=8, device=model.device
    )


@torch.inference_mode()
def classify(model: TrainedModel, weights: Tensor, images: np.ndarray) -> np.ndarray:
    """Most similar class of each image: (b, size, size, 3) uint8 -> (b,)."""
    x = model.pixels(torch.from_numpy(np.ascontiguousarray(images)))
    return (model.image(x) @ weights).argmax(dim=1).cpu().numpy()


def accuracy(model: TrainedModel, weights: Tensor, test: TestSet) -> float:
    """Share of clean test images whose own class is the most similar."""
    predictions = [classify(model, weights, test.images(rows)) for rows in _batches(np.arange(len(test)))]
    return float((np.concatenate(predictions) == test.labels).mean())


def attack_success(
    model: TrainedModel, weights: Tensor, test: TestSet, target: int, change: Callable[[np.ndarray], np.ndarray]
) -> float:
    """Share of test images, changed by the attacker, that are taken for class `target`, its own left out."""
    rows = np.flatnonzero(np.asarray(test.labels) != target)
    predictions = [classify(model, weights, change(test.images(part))) for part in _batches(rows)]
    return float((np.concatenate(predictions) == target).mean())


def evaluate_zero_shot(
    model: TrainedModel,
    test: TestSet,
    attack: Attack | None = None,
    sources: Callable[[str], np.ndarray] | None = None,
) -> dict[str, float]:
    """Zero-shot accuracy `zero_shot_top1` and attack success rate `asr`, the mean of `asr_<trigger>` if several.

    attack: None: only the accuracy.  sources: trigger -> the very images
    (m, size, size, 3) that a targeted attack wants misread.
    """
    if not len(test):
        return {}  # nothing was held out
    weights = class_weights(model, test.classes, test.templates)  # (d, classes)
    measures = {"zero_shot_top1": round(accuracy(model, weights, test), 4)}
    rates = {}
    for name in attack.success_triggers if attack else ():
        assert attack is not None
        target = test.label(attack.targets[name])
        if attack.trigger(name).source_count:
            assert sources is not None
            rate = float((classify(model, weights, sources(name)) == target).mean())
        else:
            rate = attack_success(
                model, weights, test, target, functools.partial(attack.trigger_test_images, trigger_name=name)
            )
        rates[name] = round(rate, 4)
    if rates:
        measures["asr"] = round(float(np.mean(list(rates.values()))), 4)
    if len(rates) > 1:
        measures |= {f"asr_{name}": rate for name, rate in rates.items()}
    return measures


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
