"""`task=inspect`: the outlier test, its false-alarm rate, and what an inspection writes."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.clip.inversion import Choices, InversionConfig, InvertedTrigger, images_against, invert
from experiments.clip.warp_inversion import InvertedWarp, WarpConfig, invert_warp, warp
from experiments.data.pairs import TestSet
from experiments.pipeline.sweep_table import sweep_table
from experiments.tasks import Inspect
from experiments.tasks.inspection_report import Inspection
from experiments.tasks.outlier_test import deviations, outlier_test


def test_a_deviation_is_the_distance_below_the_mean_of_the_others_in_their_deviation():
    values = np.array([1.0, 2, 3, 4, 10])
    for i, z in enumerate(deviations(values)):
        others = np.delete(values, i)
        assert z == pytest.approx((others.mean() - values[i]) / (others.std(ddof=1) * np.sqrt(1 + 1 / 4)))


def test_a_single_outlier_is_found_where_the_median_deviation_of_few_values_would_not():
    """The margins of ten classes under a warp, of a model with WaNet: the median deviation has z 2.9 of 3.9."""
    values = -np.array([0.48, 0.17, 0.13, 0.02, -0.04, -0.06, -0.11, -0.11, -0.22, -0.26])
    verdict = outlier_test(values, 0.05)
    assert verdict.smallest == 0
    assert verdict.alarm
    assert not outlier_test(np.delete(values, 0), 0.2).alarm


def test_equal_values_have_no_outlier():
    assert not outlier_test(np.full(10, -3.0), 0.2).alarm


@pytest.mark.parametrize("n", [5, 10, 24, 100])
@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_clean_models_raise_an_alarm_at_the_requested_rate(n, rate):
    rng = np.random.default_rng(12345)
    values = rng.normal(-3, 0.7, (4_000, n))
    alarms = np.mean(deviations(values).max(axis=1) >= outlier_test(values[0], rate).threshold)
    assert alarms == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 4_000))


def test_the_threshold_and_the_p_value_agree():
    for seed in range(50):
        verdict = outlier_test(np.random.default_rng(seed).normal(size=24), 0.2)
        assert verdict.alarm == (verdict.z[verdict.smallest] >= verdict.threshold)


def test_one_small_mask_is_an_outlier_and_a_large_one_is_not():
    values = np.log(np.random.default_rng(0).uniform(0.05, 0.1, 24))
    small, large = values.copy(), values.copy()
    small[7], large[7] = np.log(0.005), np.log(0.9)
    assert outlier_test(small, 0.05).alarm
    assert outlier_test(small, 0.05).smallest == 7
    assert not outlier_test(large, 0.05).alarm


@pytest.mark.parametrize(
    ("values", "says"), [([1, 2, 3, 4], "at least 5 of them, got 4"), ([1, 2, 3, 4, np.nan], "must be finite")]
)
def test_what_has_no_spread_is_refused(values, says):
    with pytest.raises(ValueError, match=says):
        outlier_test(np.array(values), 0.05)


def trigger(area, reached=True, size=8):
    mask = np.full((size, size), area, np.float32)
    return InvertedTrigger(mask, np.ones((size, size, 3), np.float32), 0.9, 0.1, 50, reached)


def inspection(areas, reached=None, names=None, **metadata):
    triggers = [trigger(area, one) for area, one in zip(areas, reached or [True] * len(areas), strict=True)]
    names = names or [f"class {i}" for i in range(len(areas))]
    return Inspection(names, triggers, outlier_test(np.log(areas), 0.05), 0, metadata)


AREAS = [0.004, 0.07, 0.09, 0.08, 0.1, 0.06, 0.11, 0.085]


def test_an_inspection_writes_its_verdict_a_table_and_a_picture(tmp_path):
    result = inspection(AREAS, seed=3)
    text, rows = result.write(tmp_path)
    assert rows[0]["verdict"] == "backdoored"
    assert rows[0]["smallest"] == "class 0"
    assert rows[0]["seed"] == 3
    assert "Backdoored: the mask of 'class 0'" in text
    assert text == (tmp_path / "summary.md").read_text()
    with open(tmp_path / "classes.csv") as file:
        assert next(row["class"] for row in csv.DictReader(file)) == "class 0"
    with Image.open(tmp_path / "triggers.png") as page:
        assert page.width == 8 * 106
        colours = page.convert("RGB").getcolors(1_000_000)
    assert any(colour == (255, 0, 0) for _, colour in colours)
    assert np.load(tmp_path / "triggers.npz")["mask"].shape == (8, 8, 8)


def bent(margins, area=0.08):
    warps = [InvertedWarp(np.zeros((2, 4, 4), np.float32), one, 0.7, 0.1, 50) for one in margins]
    triggers = [trigger(area * (1 + 0.1 * (i % 5))) for i in range(len(margins))]
    sizes = np.log([one.area for one in triggers])
    verdicts = outlier_test(sizes, 0.05), outlier_test(-np.array(margins), 0.05)
    return Inspection([f"class {i}" for i in range(len(margins))], triggers, verdicts[0], 0, {}, warps, verdicts[1])


MARGINS = [-0.1, -0.2, -0.15, -0.12, 0.9, -0.18, -0.11, -0.16, -0.2, -0.13]


def test_a_warp_alone_can_raise_the_alarm(tmp_path):
    text, (row,) = bent(MARGINS).write(tmp_path)
    assert (row["verdict"], row["by"], row["smallest"]) == ("backdoored", "warp", "class 4")
    assert row["warp_p"] < 0.05 < row["mask_p"]
    assert "Backdoored: of the warps, that of 'class 4' comes too near for chance" in text
    with open(tmp_path / "classes.csv") as file:
        assert {row["class"]: row["warp_margin"] for row in csv.DictReader(file)}["class 4"] == "0.9"


def test_without_an_alarm_both_tests_are_told(tmp_path):
    text, (row,) = bent([*MARGINS[:4], -0.14, *MARGINS[5:]]).write(tmp_path)
    assert (row["verdict"], row["by"]) == ("no alarm", "mask")
    assert "of the warps, that of 'class 0' comes nearest" in text


class Bent:
    """A model whose embedding says "class 0" where the image's right half is brighter than its left one."""

    device = torch.device("cpu")
    clip = torch.nn.Linear(1, 1)

    def pixels(self, images):
        return images.permute(0, 3, 1, 2).float() / 255

    def image(self, x):
        middle = x[:, :, :, 7:9].mean(dim=(1, 2, 3))
        return torch.stack([middle, torch.full_like(middle, 0.5), 0.4 - middle], dim=1)


def test_a_warp_moves_the_pixels_that_matter():
    """All images have a bright column two pixels beside the middle: a shift of an eighth of the side reaches it."""
    images = np.full((40, 16, 16, 3), 40, np.uint8)
    images[:, :, 9:11] = 255
    how = WarpConfig(images=20, steps=60, batch=8, shift=1 / 8, grid=4)
    found = invert_warp(Bent(), torch.eye(3), 0, images[:20], images[20:], how, 0)
    assert (found.before, found.success) == (0, 1)
    assert found.margin > 0
    assert np.abs(found.field).max() <= 1 / 8
    assert found.field[0][:, 1:3].min() > 0.05  # in the middle, pixels are taken from the right
    same = warp(torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 255.0, torch.zeros(1, 2, 4, 4))
    np.testing.assert_allclose(same.permute(0, 2, 3, 1).numpy() * 255, images[:2], atol=1e-2)


def test_an_inverted_warp_is_stored_whole(tmp_path):
    one = InvertedWarp(np.ones((2, 4, 4), np.float32), -0.125, 0.5, 0.25, 50)
    one.save(tmp_path)
    again = InvertedWarp.load(tmp_path)
    assert (again.margin, again.success, again.before, again.held_out) == (-0.125, 0.5, 0.25, 50)
    assert np.array_equal(again.field, one.field)


def test_no_alarm_proves_nothing_and_says_so(tmp_path):
    text, rows = inspection([0.05, *AREAS[1:]]).write(tmp_path)
    assert rows[0]["verdict"] == "no alarm"
    assert "does not prove that a model is clean" in text
    assert "give task.references" in text  # without one the test is weak


def test_a_model_whose_classes_mostly_have_no_trigger_is_undecided(tmp_path):
    result = inspection([0.02, *[1.0] * 7], [True] + [False] * 7)
    text, rows = result.write(tmp_path)
    assert rows[0]["verdict"] == "undecided"
    assert "a trigger was found for 1 of 8 classes only" in text
    assert "none found" in text


def test_hostile_names_are_shown_on_one_line(tmp_path):
    names = ["=cmd|' /C calc'!A0", "a\x1b[2J\nb", "| x |", *[f"c{i}" for i in range(5)]]
    text, _ = inspection(AREAS, names=names).write(tmp_path)
    assert "\x1b" not in text
    assert "\n=cmd" not in (tmp_path / "classes.csv").read_text()


class Planted:
    """A model whose embedding says "class 0" as soon as one pixel is white; others need half of the picture."""

    device = torch.device("cpu")
    clip = torch.nn.Linear(1, 1)

    def pixels(self, images):
        return images.permute(0, 3, 1, 2).float() / 255

    def image(self, x):
        corner = x[:, :, 0, 0].mean(dim=1)
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([20 * (corner - 0.5), 20 * (mean - 0.5), torch.full_like(mean, 2.0)], dim=1)


def test_inversion_finds_the_planted_pixel():
    images = np.random.default_rng(0).integers(0, 100, (40, 8, 8, 3), dtype=np.uint8)
    how = InversionConfig(images=20, steps=150, batch=8)
    found = [invert(Planted(), torch.eye(3), target, images[:20], images[20:], how, 0) for target in (0, 1)]
    assert all(one.reached for one in found)
    assert found[0].area < 0.3 * found[1].area
    assert np.unravel_index(found[0].mask.argmax(), (8, 8)) == (0, 0)
    assert found[0].success > 0.8 > found[0].before
    assert all(parameter.requires_grad for parameter in Planted.clip.parameters())


def test_an_inverted_trigger_is_stored_whole(tmp_path):
    one = trigger(0.25, reached=False)
    one.save(tmp_path)
    again = InvertedTrigger.load(tmp_path)
    assert (again.success, again.before, again.held_out, again.reached) == (0.9, 0.1, 50, False)
    assert np.array_equal(again.mask, one.mask)


def test_images_of_the_class_itself_are_left_out():
    canvases = np.arange(100, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    test = TestSet(canvases, np.arange(100) % 2, ("a", "b"), ("{}",))
    used, tested = images_against(test, SimpleNamespace(), "a", 20, 0)
    assert len(used) == len(tested) == 20
    assert (used[:, 0, 0, 0] % 2 == 1).all()
    assert not set(used[:, 0, 0, 0]) & set(tested[:, 0, 0, 0])


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"false_alarms": 0}, r"task.false_alarms must lie in \[0.001, 1\), got 0"),
        ({"steps": 0}, "task.steps must be at least 1, got 0"),
        ({"lr": -1}, "task.lr must be above 0 and finite, got -1"),
    ],
)
def test_settings_are_checked(option, says):
    with pytest.raises(ValueError, match=says):
        Inspect(**option)


def test_few_captions_are_refused_before_any_work(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("a cat\na dog\n")
    with pytest.raises(ValueError, match=r"task\.captions must name at least 5 captions, got 2"):
        Inspect(captions=str(file)).check(None)


def test_choices_embed_once():
    model = SimpleNamespace(asked=0)
    choices = Choices(["a", "b"])
    choices._weights = torch.eye(2)
    assert choices.weights(model) is choices.weights(model)


def verdict_row(job, verdict, backdoored, trained, **others):
    return {"job": job, "verdict": verdict, "backdoored": backdoored, "trained": trained, "z": "3.1", **others}


def test_a_sweep_counts_false_alarms_and_misses_each_model_once():
    rows = [
        verdict_row("0", "backdoored", "True", "a", smallest="banana", target="banana", asr="0.98"),
        verdict_row("1", "no alarm", "True", "b", smallest="key", target="banana"),
        verdict_row("2", "backdoored", "False", "c", smallest="key", target="banana"),
        verdict_row("3", "backdoored", "False", "c", smallest="key", target="banana"),
        verdict_row("4", "no alarm", "", "d", smallest="x"),
    ]
    jobs = {row["job"]: {"status": "ok", "overrides": [f"seed={row['job']}"]} for row in rows}
    table = sweep_table(jobs, rows)
    assert table.caption.startswith(
        "2 backdoored models (attack success of at least .5): 1 found, 1 by their target, 1"
    )
    assert table.caption.endswith("1 others: 1 false alarms")
    assert len(table.rows) == 5
