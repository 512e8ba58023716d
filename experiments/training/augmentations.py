"""A second view of a sample, for losses that compare two (CleanCLIP): AutoAugment and changed words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def augment_images(images: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """AutoAugment's ImageNet policy (Cubuk et al., CVPR 2019): (b, s, s, 3) uint8, (b,) seeds -> the same shape."""
    from torchvision.transforms import AutoAugment

    policy = AutoAugment()
    result = np.empty_like(images)
    for index, seed in enumerate(seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed))
            result[index] = policy(torch.from_numpy(images[index]).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    return result


def augment_texts(texts: Sequence[str], seeds: np.ndarray, share: float = 0.1) -> list[str]:
    """Words swapped and left out at random, two of the operations of EDA (Wei and Zou, EMNLP 2019).

    A tenth of a text's words (at least one) are swapped with another word. Then each word is left out with
    probability `share`; at least one word stays. EDA's synonyms need a dictionary and are not used.
    """
    augmented = []
    for text, seed in zip(texts, seeds, strict=True):
        rng = np.random.default_rng(seed)
        words = text.split()
        if len(words) > 1:
            for _ in range(max(1, round(share * len(words)))):
                a, b = rng.choice(len(words), 2, replace=False)
                words[a], words[b] = words[b], words[a]
            words = [word for word in words if rng.random() >= share] or words[:1]
        augmented.append(" ".join(words))
    return augmented
