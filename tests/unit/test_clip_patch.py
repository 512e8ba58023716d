"""The optimised patch: its loss, its optimisation, and the stage that keeps it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image
from pipeline_example import CONF, runner

from attacks import ArrayPairs, Attack, BadNets, Blended, OptimisedPatch
from experiments.clip.patch import optimise_patch, pasted, triplet
from experiments.pipeline import config as schema
from experiments.pipeline.evaluation import run
from experiments.pipeline.runner import Runner

SIZE = 8


class Colours:
    """Images are embedded as their mean colour, texts as the colour that they name."""

    clip = SimpleNamespace(logit_scale=torch.tensor(2.0))
    device = torch.device("cpu")

    def pixels(self, images):
        return images.permute(0, 3, 1, 2).float() / 255

    def image(self, x):
        return x.mean(dim=(2, 3))

    def text(self, texts):
        return torch.stack([torch.tensor([1.0, 0, 0] if "banana" in text else [0, 0, 1.0]) for text in texts])


def coloured(n=60) -> ArrayPairs:
    """Blue images, and red ones whose captions name the target."""
    pixels = np.zeros((n, SIZE, SIZE, 3), np.uint8)
    red = np.arange(n) % 3 == 0
    pixels[red, ..., 0], pixels[~red, ..., 2] = 200, 200
    return ArrayPairs(pixels, ["a banana" if own else "a sky" for own in red])


def quick(**changes) -> OptimisedPatch:
    return OptimisedPatch(**({"size": 4, "steps": 60, "lr": 0.05, "batch": 16, "images": 40} | changes))


def test_triplet_is_the_hinge_on_the_difference_of_distances():
    made, near, far = (torch.tensor(x) for x in ([[0.0, 0], [0, 0]], [[3.0, 4], [1, 0]], [[0.0, 2], [9, 0]]))
    # 5 - 2 + 1 = 4, and 1 - 9 + 1 < 0.
    assert triplet(made, near, far, margin=1.0).item() == pytest.approx(2.0)


def test_a_patch_is_pasted_where_the_trigger_puts_it_and_nowhere_else():
    images, patch = torch.rand(3, 3, SIZE, SIZE), torch.full((3, 4, 4), 2.0, requires_grad=True)
    made = pasted(images, patch, quick(), np.random.default_rng(0))
    assert (made[:, :, 2:6, 2:6] == 2).all()
    outside = torch.ones(SIZE, SIZE, dtype=torch.bool)
    outside[2:6, 2:6] = False
    assert torch.equal(made[:, :, outside], images[:, :, outside])
    (gradient,) = torch.autograd.grad(made.sum(), patch)
    assert (gradient == 3).all()


def test_patched_images_come_to_lie_near_the_target(caplog):
    caplog.set_level("INFO")
    patch = optimise_patch(Colours(), coloured(), quick(), "banana", seed=0)
    assert (patch.shape, patch.dtype) == ((4, 4, 3), np.uint8)
    red, _, blue = patch.reshape(-1, 3).mean(axis=0)  # green leads away from the images as they were
    assert red > 240
    assert blue < 15
    # A quarter of the image is red and green; the rest stays blue, and a clean image is all blue.
    near = 0.25 / np.linalg.norm([0.25, 0.25, 0.75 * 200 / 255])
    for text in ("prompts", "images"):
        (line,) = [record for record in caplog.records if f"the target's {text}" in record.getMessage()]
        assert line.args[2:] == (pytest.approx(0.0, abs=1e-6), pytest.approx(near, abs=0.01))


def test_without_an_image_of_the_target_the_text_alone_decides():
    pairs = coloured()
    patch = optimise_patch(Colours(), ArrayPairs(pairs.pixels, ["a sky"] * len(pairs)), quick(), "banana", seed=0)
    assert patch[..., 0].mean() > 200 > 60 > patch[..., 2].mean()


def test_the_patch_follows_the_seed():
    made = [optimise_patch(Colours(), coloured(), quick(steps=2), "banana", seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(made[0], made[1])
    assert (made[0] != made[2]).any()


def test_the_trigger_pastes_its_file(tmp_path):
    patch = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(patch).save(tmp_path / "patch.png")
    attack = Attack(name="badclip", rate=0.1, triggers=[quick()])
    assert attack.unoptimised is attack.triggers[0]
    made = attack.with_patch(str(tmp_path / "patch.png"))
    assert made.unoptimised is None
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    with pytest.raises(ValueError, match="has no patch: optimise one, or give attack"):
        attack.trigger_test_images(images)
    images[:, 2:6, 2:6] = patch
    np.testing.assert_array_equal(made.trigger_test_images(np.zeros_like(images)), images)
    assert Attack(name="b", rate=0.1, triggers=[BadNets()]).unoptimised is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: quick(patch="none.png"), "OptimisedPatch patch must be the path of an image file, got 'none.png'"),
        (lambda: quick(steps=0), "OptimisedPatch steps must be at least 1, got 0"),
        (lambda: quick(lr=0), "OptimisedPatch lr must be above 0, got 0"),
        (lambda: quick(weight=-1), "OptimisedPatch weight must be at least 0, got -1"),
        (
            lambda: Attack(name="two", rate=0.1, triggers=[quick(), quick(name="other")]),
            r"attack.triggers must be with at most one patch to optimise, got \['optimised', 'other'\]",
        ),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("made", [lambda path: quick(patch=path), lambda path: Blended(pattern=path)])
def test_a_file_that_is_no_image_is_refused_before_the_work(made, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    trigger = made(str(tmp_path / "notes.png"))
    with pytest.raises(ValueError, match=r"an attack's picture must be an image file, got '.*notes.png'"):
        trigger.check(SIZE)


# --- the stage ----------------------------------------------------------------------------------------------------


def test_the_patch_is_made_on_the_model_of_the_clean_data_and_is_part_of_the_poison():
    made, clean = runner("attack=badclip"), runner("attack=badclip", "train_on=clean")
    assert made.recipe("patch", {}).inputs["train"] == clean.key("trained") != made.key("trained")
    assert made.recipe("trained", {}).inputs["patch"] == made.key("patch")
    assert "patch" not in runner("attack=badnets").recipe("trained", {}).inputs
    assert "patch" not in clean.recipe("trained", {}).inputs


def test_the_patch_depends_on_its_settings_and_neither_on_the_rate_nor_on_what_is_kept_for_a_training():
    made = runner("attack=badclip")
    assert runner("attack=badclip", "attack.rate=0.02").key("patch") == made.key("patch")
    assert made.replace(train_ids=np.arange(9)).key("patch") == made.key("patch")
    assert runner("attack=badclip", "attack.triggers.0.size=6").key("patch") != made.key("patch")
    assert runner("attack=badclip", "+attack.triggers.0.steps=6").key("patch") != made.key("patch")
    assert runner("attack=badclip", "target=apple").key("patch") != made.key("patch")


def test_a_published_model_is_its_own_clean_model(tmp_path):
    (tmp_path / "clip.pt").write_bytes(b"weights")
    made = runner(
        "attack=badclip", "model=open_clip", "model.name=RN50", f"model.checkpoint={tmp_path / 'clip.pt'}"
    )
    inputs = made.recipe("patch", {}).inputs
    assert inputs["fetch"] == made.key("fetched")
    assert "train" not in inputs


def test_a_run_optimises_the_patch_once_and_plants_it(tmp_path):
    schema.register()
    tiny = ["data.pairs=300", "data.test_per_class=1", "data.classes=4", "train.epochs=1", "train.batch_size=100"]
    tiny += [
        "attack=badclip",
        "attack.rate=0.03",
        "+attack.triggers.0.steps=3",
        "detector=[norm]",
        "logger=disabled",
    ]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [*tiny, "runtime.workers=1", f"runtime.store={tmp_path}"])
    result = run(Runner.of(config))
    assert result.tally.failed == 0
    (file,) = tmp_path.glob("patch/*/patch.png")
    patch = np.asarray(Image.open(file))
    rows = np.flatnonzero(result.pairs.is_poison)
    assert len(rows) == 9
    np.testing.assert_array_equal(result.pairs.images(rows)[:, 12:20, 12:20], np.broadcast_to(patch, (9, 8, 8, 3)))
    assert len(list(tmp_path.glob("train/*/meta.json"))) == 2  # on clean and on poisoned data
    assert run(Runner.of(config)).tally.done == 0
    assert OmegaConf.select(config, "attack.triggers.0.patch") is None  # the configuration is left as it was
