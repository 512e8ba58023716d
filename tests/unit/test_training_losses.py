"""The losses against their formulas, written out in float64."""

import math

import numpy as np
import pytest
import torch

from experiments.training.losses import (
    LOSSES,
    CleanCLIPLoss,
    CLIPLoss,
    CyCLIPLoss,
    Features,
    SigLIPLoss,
    named,
    sample_losses,
)


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)

    def unit():
        x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        return x / x.norm(dim=1, keepdim=True)

    scale, bias = torch.tensor(7.0, dtype=torch.float64), torch.tensor(-3.0, dtype=torch.float64)
    return Features(unit(), unit(), scale, bias, unit(), unit())


def cross_entropy(logits):
    """Mean of -log softmax of the diagonal, by loops."""
    return float(np.mean([math.log(sum(math.exp(x) for x in row)) - row[i] for i, row in enumerate(logits)]))


def clip(f):
    logits = (f.scale * f.image @ f.text.T).numpy()
    return (cross_entropy(logits) + cross_entropy(logits.T)) / 2


def test_clip(features):
    assert float(CLIPLoss()(features)) == pytest.approx(clip(features), rel=1e-12)


def test_sample_losses_average_to_clips_loss(features):
    assert float(sample_losses(features).mean()) == pytest.approx(clip(features), rel=1e-12)


def test_siglip(features):
    logits = (features.scale * features.image @ features.text.T + features.bias).numpy()
    sign = 2 * np.eye(5) - 1
    assert float(SigLIPLoss()(features)) == pytest.approx(np.log1p(np.exp(-sign * logits)).sum() / 5, rel=1e-12)


def test_cyclip(features):
    image, text = features.image.numpy(), features.text.numpy()
    across = within = 0.0
    for j in range(5):
        for k in range(5):
            across += (image[j] @ text[k] - image[k] @ text[j]) ** 2 / 5
            within += (image[j] @ image[k] - text[j] @ text[k]) ** 2 / 5
    expected = clip(features) + 0.5 * across + 2 * within
    assert float(CyCLIPLoss(cross_modal=0.5, in_modal=2)(features)) == pytest.approx(expected, rel=1e-12)


def test_cyclip_of_equal_modalities_is_clip(features):
    same = Features(features.image, features.image, features.scale)
    assert float(CyCLIPLoss()(same)) == pytest.approx(float(CLIPLoss()(same)), abs=1e-12)


def test_cleanclip(features):
    images = cross_entropy((features.scale * features.image @ features.second_image.T).numpy())
    texts = cross_entropy((features.scale * features.text @ features.second_text.T).numpy())
    expected = 0.5 * clip(features) + 3 * (images + texts) / 2
    assert float(CleanCLIPLoss(clip=0.5, own=3)(features)) == pytest.approx(expected, rel=1e-12)


def test_cleanclip_needs_views(features):
    with pytest.raises(ValueError, match="augmented view"):
        CleanCLIPLoss()(Features(features.image, features.text, features.scale))


def test_losses_by_name():
    assert {name: type(named(name)) for name in LOSSES} == LOSSES
    with pytest.raises(ValueError, match=r"train\.loss must be one of clip, siglip, cyclip, cleanclip, got 'mse'"):
        named("mse")
    with pytest.raises(ValueError, match=r"train\.loss\.in_modal must be 0 or more, got -1"):
        CyCLIPLoss(in_modal=-1)
