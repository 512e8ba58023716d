"""What every attack of conf/attack must keep, at every scale."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from attacks import ArrayPairs, Attack, NoAttack, PoisonedPairs, PoisonPlan, Trigger, draw_plan

CONF = Path(__file__).parents[2] / "conf"
SCALES = {"demo": (32, 20000), "paper": (224, 20000)}  # name: (canvas side, samples that rates refer to)
ATTACKS = sorted(path.stem for path in (CONF / "attack").glob("*.yaml") if not path.stem.startswith("_"))
EVERY = [(scale, attack) for scale in SCALES for attack in ATTACKS]

# At least CHANGED of a triggered canvas's values differ from the clean ones by LEVELS or more, after the way
# through float and back that the evaluation transform takes.
CHANGED, LEVELS = 0.004, 4


def photographs(n: int, size: int) -> np.ndarray:
    """Smooth colour fields with edges and grain: enough of a photograph for a warp or a filter to show."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    waves = rng.uniform(1, 5, (n, 1, 1, 3)) * rows[..., None] + rng.uniform(1, 5, (n, 1, 1, 3)) * columns[..., None]
    disc = np.hypot(rows - 0.5, columns - 0.4)[..., None] < rng.uniform(0.2, 0.4, (n, 1, 1, 1))
    levels = 120 + 50 * np.sin(2 * np.pi * waves) + 60 * disc + rng.normal(0, 3, (n, size, size, 3))
    return np.clip(levels, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    """A generator for BLTO, which has no default."""
    import torch

    from attacks.triggers.blto import generator

    path = tmp_path_factory.mktemp("blto") / "generator.pt"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(generator(width=4, blocks=1).state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def patch(tmp_path_factory) -> str:
    """A patch for BadCLIP, which a stage optimises."""
    path = tmp_path_factory.mktemp("badclip") / "patch.png"
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def load(scale: str, name: str, weights: str, patch: str) -> Attack:
    own = OmegaConf.load(CONF / "scale" / f"{scale}.yaml")
    with initialize_config_dir(str(CONF / "attack"), version_base="1.3"):
        attack = compose(name)
    root = OmegaConf.create({"target": "banana", "scale": own.scale, "attack": attack})
    if name == "blto":
        root.attack.triggers[0].weights = weights
    if name == "badclip":
        root.attack.triggers[0].patch = patch
    return instantiate(root.attack)


@pytest.fixture(scope="module", params=EVERY, ids=["-".join(pair) for pair in EVERY])
def case(request, weights, patch):
    """An attack drawn for few samples, a quarter of which name a target; its rate raised to poison a few."""
    scale, name = request.param
    size, _ = SCALES[scale]
    attack = load(scale, name, weights, patch)
    n = 240 if scale == "demo" else 80
    words = [["banana", "cheeseburger", "volcano"][i % 3] if i % 4 == 0 else "cup" for i in range(n)]
    if attack.source is not None:
        words = [attack.source if word == "cup" else word for word in words]
    pixels = photographs(12, size)[np.arange(n) % 12]
    pairs = ArrayPairs(pixels, [f"a {word}, number {i}" for i, word in enumerate(words)], np.arange(n) * 7)
    if not isinstance(attack, NoAttack):
        attack = replace(attack, rate=12 / n if attack.rows != "target" else 4 / n)
    plan = draw_plan(attack, pairs, 0)
    return attack, pairs, plan


def test_there_is_an_attack_of_every_kind_of_the_paper():
    paper = {"badnets", "blended", "sig", "wanet", "nashville", "blto", "clean_label", "targeted"}
    assert paper | {"multi_trigger", "multi_target", "mislabel", "none"} <= set(ATTACKS)


@pytest.mark.parametrize(("scale", "name"), EVERY)
def test_file_name_is_the_attacks_name_and_the_rate_gives_a_plan(scale, name, weights, patch):
    attack = load(scale, name, weights, patch)
    size, n = SCALES[scale]
    assert attack.name == name
    attack.check(n, size)
    assert attack.count(n) == round(attack.rate * n)
    assert (attack.count(n) == 0) == (name == "none")


def test_the_demo_alone_filters_more_than_once(weights):
    scales = ("demo", "photos", "paper")
    passes = {scale: load(scale, "nashville", weights, "").triggers[0].passes for scale in scales}
    assert passes == {"demo": 3, "photos": 1, "paper": 1}


def test_number_of_poisons_is_the_rounded_rate(case):
    attack, pairs, plan = case
    assert len(plan) == round(attack.rate * len(pairs))


def test_plan_is_deterministic_json_able_and_survives_parquet(case, tmp_path):
    attack, pairs, plan = case
    again = draw_plan(attack, pairs, 0)
    assert again == plan
    for parameters in plan.parameters:
        assert json.loads(json.dumps(parameters)) == parameters
    plan.save(tmp_path / "plan.parquet")
    assert PoisonPlan.load(tmp_path / "plan.parquet") == plan


def test_plan_names_triggers_and_targets_of_the_attack(case):
    attack, _, plan = case
    for trigger, target in zip(plan.triggers, plan.targets, strict=True):
        assert target == attack.targets[trigger]


def test_poisoned_captions_name_the_target_unless_kept(case):
    attack, pairs, plan = case
    poisoned = PoisonedPairs(pairs, plan, attack)
    if attack.captions == "keep":
        assert poisoned.captions == pairs.captions
    assert all(target in caption for caption, target in zip(plan.captions, plan.targets, strict=True))


def test_only_poisoned_rows_change_and_the_clean_data_stays(case):
    attack, pairs, plan = case
    before = pairs.pixels.copy()
    poisoned = PoisonedPairs(pairs, plan, attack)
    rows = np.arange(len(pairs))
    images = poisoned.images(rows)
    assert images.dtype == np.uint8
    assert images.shape == pairs.pixels.shape
    assert np.array_equal(pairs.pixels, before)
    assert np.array_equal(images[~poisoned.is_poison], before[~poisoned.is_poison])
    assert set(pairs.ids[poisoned.is_poison]) == set(plan.ids)
    assert np.array_equal(poisoned.images(rows[::-1]), images[::-1])


def shown(attack: Attack, name: str, images: np.ndarray) -> np.ndarray:
    trigger = attack.trigger(name)
    return trigger.apply(images, [at_test(trigger, images)] * len(images))


def at_test(trigger: Trigger, images: np.ndarray) -> dict:
    """Parameters at test time; a picture to blend with comes from the data."""
    return trigger.test_parameters(images.shape[1]) | ({"picture": images[0]} if trigger.blends_pictures else {})


def test_trigger_is_deterministic_never_in_place_and_the_same_alone_and_in_a_batch(case):
    attack, pairs, _ = case
    images = pairs.pixels[:5].copy()
    for trigger in attack.triggers:
        out = shown(attack, trigger.name, images)
        assert np.array_equal(images, pairs.pixels[:5])
        assert not np.shares_memory(out, images)
        assert out.dtype == np.uint8
        assert np.array_equal(out, shown(attack, trigger.name, images))
        one_by_one = [trigger.apply_one(image, at_test(trigger, images)) for image in images]
        assert np.abs(out - np.stack(one_by_one).astype(int)).max() <= 1  # a network's sums may round apart


def test_trigger_survives_the_evaluation_transform(case):
    """The canvas is already resized and cropped: what is left of the transform is uint8 -> float -> uint8."""
    import torch
    from torchvision.transforms.v2 import functional as transforms

    attack, pairs, _ = case
    images = pairs.pixels[:12]
    for name in attack.success_triggers:
        trigger = attack.trigger(name)
        if trigger.source_count or not trigger.measures_success:
            continue  # they leave the images as they are
        parameters = at_test(trigger, pairs.pixels[:1] // 2 + 60)
        triggered = trigger.apply(images, [parameters] * len(images))
        floats = transforms.to_dtype(torch.from_numpy(triggered), torch.float32, scale=True)
        seen = transforms.to_dtype(floats, torch.uint8, scale=True).numpy()
        differ = np.abs(seen.astype(int) - images) >= LEVELS
        assert differ.mean(axis=(1, 2, 3)).min() >= CHANGED


def test_poisons_differ_from_clean_by_the_trigger_alone(case):
    attack, pairs, plan = case
    poisoned = PoisonedPairs(pairs, plan, attack)
    row_of = {id: row for row, id in enumerate(pairs.ids.tolist())}
    for i, id in enumerate(plan.ids.tolist()):
        row = row_of[id]
        base = row_of[plan.parameters[i].get("source", id)]
        parameters = dict(plan.parameters[i])
        if "picture" in parameters:
            parameters["picture"] = pairs.pixels[row_of[parameters["picture"]]]
        expected = attack.trigger(plan.triggers[i]).apply_one(pairs.pixels[base], parameters)
        assert np.abs(poisoned.images(np.array([row]))[0] - expected.astype(int)).max() == 0
