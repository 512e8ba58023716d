"""Optimise a trigger's patch on a model of clean data (Liang et al., BadCLIP, CVPR 2024, arXiv 2311.12075).

For an image x with the patch, e = f(x + patch), all embeddings of unit length, the patch minimises

    L = L_text + weight * mean max(0, |e - a| - |e - f(x)| + margin)

with Adam. L_text is the cross-entropy of e with a prompt of the target among the captions of the batch, at the
model's own temperature. The second term pulls e to the embedding a of an image of the target, and away from the
unchanged image; weight (500) and margin (1) are the public code's. In that code the text term is CLIP's loss of a
batch whose captions all describe the target. Adam has fewer steps here, at a higher rate (there .001, 50 epochs).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from attacks.captions import holds_word, templates
from attacks.triggers.optimised import OptimisedPatch
from experiments.clip.model import TrainedModel
from experiments.runtime.progress import track

log = logging.getLogger(__name__)
CHUNK = 256  # images embedded at once
TARGETS = 512  # images of the target at most


def optimise_patch(model: TrainedModel, clean: Any, trigger: OptimisedPatch, target: str, seed: int) -> np.ndarray:
    """The patch, uint8 (size, size, 3). It is pulled to images whose caption names the target; without any,
    only the text term is left.
    """
    rng = np.random.default_rng([seed, trigger.size])
    named = holds_word(clean.captions, target)
    others, own = np.flatnonzero(~named), np.flatnonzero(named)
    others = np.sort(rng.choice(others, min(trigger.images, len(others)), replace=False))
    own = np.sort(rng.choice(own, min(TARGETS, len(own)), replace=False))
    prompts = [prompt(target) for prompt in templates()]
    with torch.no_grad():
        texts = normalize(model.text(prompts).float(), dim=1)  # (p, d)
        captions = _texts(model, [clean.captions[row] for row in others])  # (m, d)
        before = _images(model, clean, others)  # (m, d)
        aims = _images(model, clean, own)  # (a, d), may have no row
    start = rng.normal(0.5, 0.25, (3, trigger.size, trigger.size)).clip(0, 1)
    patch = torch.tensor(start, dtype=torch.float32, device=model.device, requires_grad=True)
    adam = torch.optim.Adam([patch], lr=trigger.lr)
    scale = model.clip.logit_scale.detach().exp()  # type: ignore[union-attr, operator]
    for _ in track(range(trigger.steps), trigger.steps, "optimising the patch"):
        at = rng.choice(len(others), min(trigger.batch, len(others)), replace=False)
        images = model.pixels(torch.from_numpy(np.ascontiguousarray(clean.images(others[at]))))
        made = normalize(model.image(pasted(images, patch, trigger, rng)).float(), dim=1)  # (b, d)
        prompt = texts[torch.from_numpy(rng.integers(len(texts), size=len(at)))]
        logits = torch.cat([(made * prompt).sum(1, keepdim=True), made @ captions[at].T], dim=1)
        loss = cross_entropy(scale * logits, torch.zeros(len(at), dtype=torch.long, device=made.device))
        if len(aims):
            aim = aims[torch.from_numpy(rng.integers(len(aims), size=len(at)))]
            loss = loss + trigger.weight * triplet(made, aim, before[at], trigger.margin)
        (patch.grad,) = torch.autograd.grad(loss, patch)  # and none for the model's weights
        adam.step()
        with torch.no_grad():
            patch.clamp_(0, 1)
    _log_cosines(model, clean.images(others[:CHUNK]), patch.detach(), trigger, rng, texts, aims)
    return (patch.detach() * 255).round().byte().permute(1, 2, 0).cpu().numpy()


@torch.no_grad()
def _log_cosines(
    model: TrainedModel,
    canvases: np.ndarray,
    patch: Tensor,
    trigger: OptimisedPatch,
    rng: np.random.Generator,
    texts: Tensor,
    aims: Tensor,
) -> None:
    """Log how far the patch moves images: cosines with the target's prompts and images, without and with it."""
    images = model.pixels(torch.from_numpy(np.ascontiguousarray(canvases)))
    shown = [images, pasted(images, patch, trigger, rng)]
    before, after = (normalize(model.image(x).float(), dim=1) for x in shown)
    for name, near in (("prompts", texts), ("images", aims)):
        if len(near):
            found = [float((x @ near.T).mean()) for x in (before, after)]
            log.info("%-10s cosine with the target's %s: %.3f without it, %.3f with it", "patch", name, *found)


def triplet(made: Tensor, near: Tensor, far: Tensor, margin: float) -> Tensor:
    """Mean over rows of max(0, |made - near| - |made - far| + margin), all (b, d)."""
    return ((made - near).norm(dim=1) - (made - far).norm(dim=1) + margin).clamp(min=0).mean()


def pasted(images: Tensor, patch: Tensor, trigger: OptimisedPatch, rng: np.random.Generator) -> Tensor:
    """Images (b, 3, s, s) with the patch (3, size, size) at places that the trigger draws; differentiable."""
    made, size = images.clone(), images.shape[-1]
    for i in range(len(images)):
        where = trigger.draw(rng, size)
        rows, columns = (slice(where[side], where[side] + trigger.size) for side in ("top", "left"))
        made[i, :, rows, columns] = patch
    return made


def _texts(model: TrainedModel, texts: list[str]) -> Tensor:
    parts = [model.text(texts[begin : begin + CHUNK]).float() for begin in range(0, len(texts), CHUNK)]
    return normalize(torch.cat(parts), dim=1)


def _images(model: TrainedModel, clean: Any, rows: np.ndarray) -> Tensor:
    """(m, d) unit embeddings of the images at `rows`."""
    parts = [
        model.image(model.pixels(torch.from_numpy(np.ascontiguousarray(clean.images(rows[begin : begin + CHUNK])))))
        for begin in range(0, len(rows), CHUNK)
    ]
    return normalize(torch.cat(parts).float(), dim=1) if parts else torch.empty(0, device=model.device)
