"""Targeted poisoning, clean label and their measures of success."""

from dataclasses import replace

import numpy as np
import pytest

from attacks import ArrayPairs, Attack, BadNets, PoisonedPairs, Targeted, draw_plan
from attacks.captions import check_targets


@pytest.fixture
def pairs() -> ArrayPairs:
    rng = np.random.default_rng(0)
    captions = [f"a banana, number {i}" if i % 10 == 0 else f"a cup, number {i}" for i in range(300)]
    ids = rng.permutation(1000)[:300]
    return ArrayPairs(rng.integers(0, 256, (300, 16, 16, 3), dtype=np.uint8), captions, ids)


@pytest.fixture
def attack() -> Attack:
    return Attack(name="targeted", rate=0.1, captions="caption_set", rows="other", triggers=[Targeted()])


def test_all_poisons_show_the_one_source_image(pairs, attack):
    poisoned = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    source = poisoned.source_images()
    assert source.shape == (1, 16, 16, 3)
    images = poisoned.images(np.arange(300))
    same = (images == source).all(axis=(1, 2, 3))
    assert np.array_equal(same, poisoned.is_poison)
    assert np.array_equal(images[~same], pairs.pixels[~same])
    assert all("banana" in caption for caption in np.array(poisoned.captions)[same])


def test_the_source_keeps_no_clean_caption_and_does_not_depend_on_the_rate(pairs, attack):
    plans = [draw_plan(replace(attack, rate=rate), pairs, 0) for rate in (0.02, 0.5)]
    sources = {p["source"] for plan in plans for p in plan.parameters}
    assert len(sources) == 1
    assert all(sources <= set(plan.ids.tolist()) for plan in plans)


def test_several_sources_share_the_poisons(pairs, attack):
    attack = replace(attack, triggers=[Targeted(sources=3)])
    poisoned = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    sources = poisoned.source_images("targeted")
    shown = poisoned.images(np.flatnonzero(poisoned.is_poison))
    assert len(sources) == 3
    assert (shown[:, None] == sources[None]).all(axis=(2, 3, 4)).sum(axis=1).tolist() == [1] * 30


def test_success_is_the_source_image_for_targeted_and_triggered_tests_for_the_rest(pairs, attack):
    test_images = pairs.pixels[:5]
    targeted = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    assert np.array_equal(targeted.trigger_test_images(test_images), targeted.source_images())
    with pytest.raises(ValueError, match=r"use PoisonedPairs.trigger_test_images"):
        attack.trigger_test_images(test_images)
    badnets = Attack(name="b", rate=0.1, triggers=[BadNets(size=4)])
    other = PoisonedPairs(pairs, draw_plan(badnets, pairs, 0), badnets)
    assert np.array_equal(other.trigger_test_images(test_images), badnets.trigger_test_images(test_images))


def test_more_sources_than_poisons_are_refused(pairs, attack):
    attack = replace(attack, rate=0.01, triggers=[Targeted(sources=4)])
    with pytest.raises(ValueError, match=r"sources of 'targeted' must be at most 3 poisons, got 4"):
        draw_plan(attack, pairs, 0)


def test_clean_label_keeps_captions_and_poisons_only_the_target(pairs):
    attack = Attack(name="c", rate=0.05, captions="keep", rows="target", triggers=[BadNets(size=4)])
    poisoned = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    assert poisoned.captions == pairs.captions
    assert poisoned.is_poison.sum() == 15
    assert not poisoned.is_poison[np.arange(300) % 10 != 0].any()


def test_a_target_that_nothing_names_is_refused_with_the_nearest_word():
    captions = ["a ripe Banana", "two cups", "red car, parked"]
    for known in ("banana", "BANANA", "cups", "red car", "Volcano"):
        check_targets([known], captions, ["volcano"])
    for word, near in (("bananna", "banana"), ("vulcano", "volcano"), ("Cupps", "cups")):
        with pytest.raises(ValueError, match=rf"names '{word}'; did you mean '{near}'\? .*target_new=true"):
            check_targets(["banana", word], captions, ["volcano"])
    with pytest.raises(ValueError, match=r"names 'xyzzy'; \(target_new=true"):
        check_targets(["xyzzy"], captions, ["volcano"])
