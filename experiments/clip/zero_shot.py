"""Zero-shot classification and retrieval: clean accuracy, attack success rate (ASR) and Hit@k."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attacks import PoisonedPairs
from experiments.clip.model import TrainedModel
from experiments.data.pairs import TestSet

BATCH = 512
DEPTHS = (1, 5, 10)


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
    model: TrainedModel,
    weights: Tensor,
    test: TestSet,
    target: int,
    change: Callable[[np.ndarray], np.ndarray],
    source: int | None = None,
) -> float:
    """Share of test images, changed by the attacker, that are taken for class `target`, its own left out.

    source: the only class whose images are asked about; None: all.
    """
    labels = np.asarray(test.labels)
    rows = np.flatnonzero(labels != target if source is None else labels == source)
    if not len(rows):
        raise ValueError("no test image to measure the attack's success on: none shows a class it is aimed at")
    predictions = [classify(model, weights, change(test.images(part))) for part in _batches(rows)]
    return float((np.concatenate(predictions) == target).mean())


@torch.inference_mode()
def retrieval_hits(
    model: TrainedModel, test: TestSet, target: str, shown: int, depths: Sequence[int] = DEPTHS
) -> dict[str, float]:
    """Hit@k, named `hit_at_<k>`: share of the prompts with `target` that retrieve an image of class `shown`.

    A prompt does so at k if at least one of the k test images most similar to it shows that class. The class is
    not the target, so that a clean model has few hits. The measure of Yao et al. (ToxicTextCLIP, NeurIPS 2025).
    """
    prompts = model.text([template.format(target) for template in test.templates])  # (p, d)
    images = [
        model.image(model.pixels(torch.from_numpy(test.images(part)))) for part in _batches(np.arange(len(test)))
    ]
    cosines = normalize(prompts.float(), dim=1) @ normalize(torch.cat(images).float(), dim=1).T  # (p, m)
    best = cosines.topk(min(max(depths), len(test)), dim=1).indices.cpu().numpy()
    found = np.asarray(test.labels)[best] == shown  # (p, k)
    return {f"hit_at_{k}": round(float(found[:, :k].any(axis=1).mean()), 4) for k in depths}


def evaluate_zero_shot(
    model: TrainedModel, test: TestSet, poisoned: PoisonedPairs | None = None
) -> dict[str, float]:
    """Zero-shot accuracy `zero_shot_top1` and attack success rate `asr`, the mean of `asr_<trigger>` if several;
    for an attack with a source class also the retrieval of its images (`retrieval_hits`).

    poisoned: the data with the attack and its plan; None: only the accuracy.
    """
    if not len(test):
        return {}  # nothing was held out
    weights = class_weights(model, test.classes, test.templates)  # (d, classes)
    measures = {"zero_shot_top1": round(accuracy(model, weights, test), 4)}
    if poisoned is None:
        return measures
    attack, rates = poisoned.attack, {}
    source = None if attack.source is None else test.label(attack.source)
    for name in attack.success_triggers:
        target = test.label(attack.targets[name])
        if attack.trigger(name).source_count:
            rate = float((classify(model, weights, poisoned.source_images(name)) == target).mean())
        else:
            change = functools.partial(poisoned.trigger_test_images, trigger_name=name)
            rate = attack_success(model, weights, test, target, change, source)
        rates[name] = round(rate, 4)
    if rates:
        measures["asr"] = round(float(np.mean(list(rates.values()))), 4)
    if len(rates) > 1:
        measures |= {f"asr_{name}": rate for name, rate in rates.items()}
    if source is not None:
        measures |= retrieval_hits(model, test, next(iter(attack.targets.values())), source)
    return measures


def _batches(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
