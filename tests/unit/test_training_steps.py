"""Single steps of training: accumulation against one batch, options, refusals."""

import numpy as np
import pytest
import torch
from training_example import TINY_CONV, Noise, TinyViT

from experiments.training.augmentations import augment_images, augment_texts
from experiments.training.config import TrainConfig
from experiments.training.crops import Shift
from experiments.training.trainer import Trainer, train


def run_of(training, spec, tmp_path, n=24):
    pairs = Noise(n)
    torch.manual_seed(0)
    return Trainer(spec.build(pairs.captions), training, pairs, tmp_path, seed=5, device="cpu")


def gradients(training, spec, tmp_path):
    """(loss, gradients by name, running statistics) of the first step."""
    run = run_of(training, spec, tmp_path)
    run.model.clip.train()
    loss, _ = run.backward(run.steps()[0])
    named = {name: p.grad.clone() for name, p in run.model.clip.named_parameters()}
    return loss.item(), named, {name: b.clone() for name, b in run.model.clip.named_buffers()}


def recipe(**options):
    return TrainConfig(epochs=1, batch_size=12, warmup_epochs=0, precision="float32", augment=Shift(2), **options)


@pytest.mark.parametrize("loss", ["clip", "siglip", "cyclip", "cleanclip"])
@pytest.mark.parametrize("accumulate", [3, 5])
def test_accumulated_gradients_are_those_of_one_batch(loss, accumulate, tmp_path):
    whole, expected, _ = gradients(recipe(loss=loss), TinyViT(), tmp_path)
    parts, found, _ = gradients(recipe(loss=loss, accumulate=accumulate), TinyViT(), tmp_path)
    assert parts == pytest.approx(whole, rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
    assert expected["logit_scale"].abs() > 1e-4  # open_clip's own accumulation counts this one several times


def test_accumulation_draws_the_same_random_numbers_in_both_passes(tmp_path):
    """Every feature that the gradient is taken of has to be the one that the loss has seen."""
    run = run_of(recipe(accumulate=3), TinyViT(patch_dropout=0.5), tmp_path)
    seen = []
    plain = run.features

    def noted(*arguments):
        seen.append(plain(*arguments))
        return seen[-1]

    run.features = noted
    run.model.clip.train()
    run.backward(run.steps()[0])
    assert len(seen) == 6
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert torch.equal(first.image, second.image)
    assert not torch.equal(seen[0].image, seen[1].image)


def test_running_statistics_move_once_for_each_part(tmp_path):
    _, _, once = gradients(recipe(accumulate=2), TINY_CONV, tmp_path)
    run = run_of(recipe(), TINY_CONV, tmp_path)
    batch = run.steps()[0]
    run.model.clip.train()
    with torch.no_grad():
        for part in (batch.images[:6], batch.images[6:]):
            run.model.clip.encode_image(run.model.pixels(part).contiguous(memory_format=torch.channels_last))
    for name, value in run.model.clip.named_buffers():
        if "running" in name:
            assert torch.allclose(once[name], value, atol=1e-6), name


def test_siglip_gives_the_model_a_bias_that_is_saved(tmp_path):
    training = recipe(loss="siglip")
    model = train(TINY_CONV, training, Noise(24), tmp_path, seed=0)
    assert model.clip.logit_bias is not None
    from experiments.clip import load_model

    again = load_model(tmp_path)
    assert float(again.clip.logit_bias) == float(model.clip.logit_bias)
    assert abs(float(model.clip.logit_bias) + 10) < 0.1


def test_the_norm_of_the_gradient_is_bounded(tmp_path):
    run = run_of(recipe(clip_norm=1e-3), TinyViT(), tmp_path)
    run.train_step(run.steps()[0])
    norm = torch.cat([p.grad.flatten() for p in run.model.clip.parameters()]).norm()
    assert float(norm) == pytest.approx(1e-3, rel=1e-3)


def test_weight_decay_spares_gains_biases_and_the_scale():
    clip = TinyViT().build(["red"]).clip
    with_decay, without = recipe(weight_decay=0.3).optimiser(clip).param_groups
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.3, 0.0)
    assert all(p.ndim >= 2 for p in with_decay["params"])
    assert any(p is clip.logit_scale for p in without["params"])
    assert len(with_decay["params"]) + len(without["params"]) == len(list(clip.parameters()))


def test_warm_up_and_cosine():
    training = TrainConfig(epochs=4, batch_size=10, lr=1.0, warmup_epochs=0.5)
    rates = [training.learning_rate(step, steps_per_epoch=8) for step in range(32)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[18] == pytest.approx(0.5)
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, r"train\.accumulate must be above 0, got 0"),
        ({"lr": float("inf")}, r"train\.lr must be finite, got inf"),
        ({"batch_size": 1}, r"train\.batch_size must be at least 2 pairs, which are contrasted, got 1"),
        ({"weight_decay": -1.0}, r"train\.weight_decay must be at least 0 and finite, got -1\.0"),
        ({"betas": [0.9]}, r"train\.betas must be two numbers in \[0, 1\), got \[0\.9\]"),
        ({"betas": [0.9, 1.0]}, r"train\.betas must be two numbers in \[0, 1\), got \[0\.9, 1\.0\]"),
        ({"clip_norm": 0.0}, r"train\.clip_norm must be above 0, or null for no bound, got 0\.0"),
        ({"loss": "mse"}, r"train\.loss must be one of"),
        ({"precision": "fp8"}, r"train\.precision must be one of auto, bfloat16, float32, got 'fp8'"),
        ({"warmup_epochs": 9}, r"train\.warmup_epochs must lie in \[0, epochs=1\], got 9"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**{"epochs": 1, "warmup_epochs": 0, **options})


def test_parts_and_batch_are_checked_against_the_data(tmp_path):
    with pytest.raises(
        ValueError, match=r"train\.accumulate must not exceed the pairs of a process \(12\), got 13"
    ):
        run_of(recipe(accumulate=13), TinyViT(), tmp_path)
    with pytest.raises(ValueError, match=r"train\.batch_size must not exceed the number of pairs \(6\), got 12"):
        run_of(recipe(), TinyViT(), tmp_path, n=6)


def test_views_follow_from_their_seeds():
    images, seeds = Noise(3).images(np.arange(3)), np.array([1, 2, 3])
    assert np.array_equal(augment_images(images, seeds), augment_images(images, seeds))
    assert not np.array_equal(augment_images(images, seeds), augment_images(images, seeds + 10))
    texts = ["a red kite over the old green hill", "star", ""]
    views = augment_texts(texts, seeds)
    assert views == augment_texts(texts, seeds)
    assert views[0] != texts[0]
    assert set(views[0].split()) <= set(texts[0].split())
    assert views[1:] == texts[1:]
