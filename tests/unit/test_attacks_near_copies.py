"""A natural backdoor that is planted: near-identical copies of one image, all with the same caption."""

import numpy as np
import pytest

from attacks import ArrayPairs, Attack, NearCopies, PoisonedPairs, draw_plan

CAPTION = "the birthday cake with candles in the form of a number icon"


def planted(seed=0, **options):
    rng = np.random.default_rng(1)
    pairs = ArrayPairs(
        pixels=rng.integers(60, 190, (200, 16, 16, 3), dtype=np.uint8),
        captions=[f"a photo of a cat {n}" for n in range(200)],
        ids=np.arange(200),
    )
    attack = Attack(name="natural", rate=0.1, target=CAPTION, captions="target", triggers=[NearCopies(**options)])
    plan = draw_plan(attack, pairs, seed)
    return pairs, plan, PoisonedPairs(pairs, plan, attack)


def test_all_copies_show_one_image_of_the_data_and_carry_the_caption():
    pairs, plan, poisoned = planted(shift=0, brightness=0, noise=0)
    images = poisoned.images(np.flatnonzero(poisoned.is_poison))
    assert len(images) == 20
    assert (images == images[0]).all()
    assert any((images[0] == own).all() for own in pairs.images(np.arange(200)))
    assert set(plan.captions) == {CAPTION}


def test_copies_are_near_but_not_the_same_and_others_are_untouched():
    pairs, _, poisoned = planted()
    rows = np.flatnonzero(poisoned.is_poison)
    images = poisoned.images(rows).astype(int)
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20
    others = np.flatnonzero(~poisoned.is_poison)
    assert (poisoned.images(others) == pairs.images(others)).all()


def test_a_copy_moves_and_brightens_as_drawn():
    image = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3) // 2
    trigger = NearCopies(noise=0)
    moved = trigger.apply_one(image, {"down": 1, "right": -2, "level": 5.0, "noise_seed": 0})
    assert (moved[1:, :-2] == image[:-1, 2:] + 5).all()
    assert (moved[0] == moved[1]).all()  # the edge is repeated


@pytest.mark.parametrize("field", ["shift", "brightness", "noise"])
def test_negative_changes_are_refused(field):
    with pytest.raises(ValueError, match=f"NearCopies {field} must be at least 0, got -1"):
        NearCopies(**{field: -1})
