"""Triggers that differ from sample to sample: blended pictures of the data, and fewer levels with dithering."""

from dataclasses import replace

import numpy as np
import pytest

from attacks import ArrayPairs, Attack, BlendedOther, Bpp, PoisonedPairs, draw_plan


@pytest.fixture
def pairs() -> ArrayPairs:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    return ArrayPairs(pixels, [f"a cup, number {i}" for i in range(60)], rng.permutation(500)[:60])


@pytest.fixture
def attack() -> Attack:
    return Attack(name="blended_other", rate=0.5, triggers=[BlendedOther(alpha=0.4)])


def test_each_poison_is_the_weighted_mean_with_a_picture_of_its_own(pairs, attack):
    plan = draw_plan(attack, pairs, 0)
    poisoned = PoisonedPairs(pairs, plan, attack)
    row_of = {id: row for row, id in enumerate(pairs.ids.tolist())}
    pictures = [parameters["picture"] for parameters in plan.parameters]
    assert len(set(pictures)) > 15  # of 30
    rows = np.array([row_of[id] for id in plan.ids.tolist()])
    expected = 0.6 * pairs.pixels[rows] + 0.4 * pairs.pixels[[row_of[id] for id in pictures]]
    assert np.abs(poisoned.images(rows) - expected).max() <= 0.51
    np.testing.assert_array_equal(poisoned.images(rows[::-1]), poisoned.images(rows)[::-1])


def test_a_picture_is_never_the_samples_own_and_does_not_depend_on_the_order_of_the_rows(pairs, attack):
    plans = [draw_plan(replace(attack, rate=1.0), pairs, seed) for seed in range(20)]
    assert all(own["picture"] != id for plan in plans for id, own in zip(plan.ids, plan.parameters, strict=True))
    drawn = {own["picture"] for plan in plans for own in plan.parameters}
    assert drawn == set(pairs.ids.tolist())
    order = np.random.default_rng(1).permutation(60)
    moved = ArrayPairs(pairs.pixels[order], [pairs.captions[i] for i in order], pairs.ids[order])
    assert draw_plan(attack, moved, 3) == draw_plan(attack, pairs, 3)


def test_at_test_time_the_pictures_are_of_the_data_and_follow_from_the_image_alone(pairs, attack):
    poisoned = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    images = np.random.default_rng(5).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
    shown = poisoned.trigger_test_images(images)
    for image, made in zip(images, shown, strict=True):
        np.testing.assert_array_equal(poisoned.trigger_test_images(image[None])[0], made)
        blends = np.rint(np.float32(0.6) * image + np.float32(0.4) * pairs.pixels)
        assert np.abs(blends - made).max(axis=(1, 2, 3)).min() <= 1
    assert len(poisoned.trigger_test_images(images[:0])) == 0
    with pytest.raises(ValueError, match=r"'blended_other' needs images of the data; use PoisonedPairs"):
        attack.trigger_test_images(images)


def by_pixel(image: np.ndarray, levels: int) -> np.ndarray:
    """Floyd and Steinberg's error diffusion, a pixel and a channel at a time."""
    x, step = image.astype(float), 255 / (levels - 1)
    size = len(x)
    for row in range(size):
        for column in range(size):
            for channel in range(3):
                old = x[row, column, channel]
                new = min(max(round(old / step), 0), levels - 1) * step
                x[row, column, channel] = new
                for down, right, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                    if row + down < size and 0 <= column + right < size:
                        x[row + down, column + right, channel] += (old - new) * share / 16
    return np.rint(x)


@pytest.mark.parametrize("levels", [2, 5, 8])
def test_bpp_spreads_the_error_of_each_pixel(pairs, levels):
    images = pairs.pixels[:4]
    made = Bpp(levels=levels).apply(images, [{}] * 4)
    expected = np.stack([by_pixel(image, levels) for image in images])
    assert (made != expected).mean() < 0.01  # sums in float32 may round apart at a tie
    assert len(np.unique(made)) <= levels


def test_bpp_keeps_the_mean_with_dithering_alone():
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    assert Bpp(levels=2).apply(grey, [{}]).mean() == pytest.approx(100, abs=3)
    assert Bpp(levels=2, dither=False).apply(grey, [{}]).max() == 0
    assert (Bpp(levels=3, dither=False).apply(grey, [{}]) == 128).all()


def test_bpp_leaves_an_image_of_its_levels_alone():
    image = np.random.default_rng(0).integers(0, 6, (2, 16, 16, 3)).astype(np.uint8) * 51
    np.testing.assert_array_equal(Bpp(levels=6).apply(image, [{}] * 2), image)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BlendedOther(alpha=1), "BlendedOther alpha must be above 0 and below 1, got 1"),
        (lambda: BlendedOther(alpha=0), "BlendedOther alpha must be above 0 and below 1, got 0"),
        (lambda: Bpp(levels=1), "Bpp levels must be 2 to 255, got 1"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
