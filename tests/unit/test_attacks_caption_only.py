"""Caption-only poisoning: which rows, which captions, and how its success is measured."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attacks import ArrayPairs, Attack, BadNets, Identity, PoisonedPairs, draw_plan
from attacks.captions import check_source
from detect import SLOF, Embeddings
from experiments.clip.zero_shot import attack_success, retrieval_hits
from experiments.data.pairs import TestSet

WORDS = ("banana", "boat", "cup", "boat and banana")


@pytest.fixture
def pairs() -> ArrayPairs:
    captions = [f"a {WORDS[i % 4]}, number {i}" for i in range(200)]
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    return ArrayPairs(pixels, captions, np.arange(200) * 3)


def caption_only(**changes) -> Attack:
    settings = {
        "rate": 0.2,
        "captions": "caption_set",
        "rows": "source",
        "source": "boat",
        "triggers": [Identity()],
    }
    return Attack(name="caption_only", **(settings | changes))


def test_only_captions_of_the_source_change_and_no_image(pairs):
    attack = caption_only()
    poisoned = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    rows = np.flatnonzero(poisoned.is_poison)
    assert len(rows) == 40
    assert set(rows % 4) == {1}  # those that name the target as well are left alone
    real = {caption for caption in pairs.captions if "banana" in caption}
    assert {poisoned.captions[row] for row in rows} <= real
    np.testing.assert_array_equal(poisoned.images(np.arange(200)), pairs.pixels)


def test_success_of_a_source_class_is_measured_without_a_trigger_too():
    assert caption_only().success_triggers == ("identity",)
    without = Attack(name="mislabel", rate=0.2, rows="other", triggers=[Identity()])
    assert without.success_triggers == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": None}, "attack.source must be a word where attack.rows is 'source', got None"),
        ({"source": " "}, "attack.source must be a word"),
        ({"source": 3}, "attack.source must be a word"),
        ({"rows": "other"}, "attack.rows must be 'source' where attack.source is given, got 'other'"),
        ({"target": ["banana"]}, "attack.target must be one word where there is a source, got"),
        ({"source": "Banana"}, "attack.source must be another word than the target 'banana', got 'Banana'"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        caption_only(**changes)


def test_a_rate_above_the_share_of_the_source_is_refused_with_the_highest(pairs):
    with pytest.raises(
        ValueError, match=r"captions hold 'boat' and not 'banana', but there are only 50.*at most 0.25"
    ):
        draw_plan(caption_only(rate=0.5), pairs, 0)


def test_a_source_without_test_images_is_refused_with_the_nearest_class():
    with pytest.raises(
        ValueError, match=r"must be a class of the test images, got 'boat'; did you mean 'sailboat'"
    ):
        check_source("boat", ["banana", "sailboat"])
    check_source("boat", ["boat"])
    check_source("boat", [])  # nothing is measured


class Points:
    """Images of one pixel value v lie at angle v (degrees); each text is a number of degrees."""

    clip = SimpleNamespace()

    @staticmethod
    def _at(degrees):
        radians = torch.deg2rad(degrees.float())
        return torch.stack([torch.cos(radians), torch.sin(radians)], dim=1)

    def pixels(self, images):
        return images

    def image(self, x):
        return self._at(x[:, 0, 0, 0]) * 7  # not of unit length

    def text(self, texts):
        return self._at(torch.tensor([int(text.split()[-1]) for text in texts]))


def labelled(degrees, labels, templates=("{}",)) -> TestSet:
    canvases = np.broadcast_to(np.array(degrees, np.uint8)[:, None, None, None], (len(degrees), 2, 2, 3))
    return TestSet(np.array(canvases), np.array(labels), ("0", "90", "45"), templates)


def test_success_is_the_share_of_the_sources_images_that_are_taken_for_the_target():
    test = labelled([0, 80, 85, 10, 44, 89], [0, 1, 1, 1, 2, 2])
    weights = Points().text(["0", "90"]).T  # (d, classes)
    assert attack_success(Points(), weights, test, 0, lambda x: x, source=1) == pytest.approx(1 / 3)
    assert attack_success(Points(), weights, test, 0, lambda x: x) == pytest.approx(2 / 5)
    with pytest.raises(ValueError, match="no test image to measure the attack's success on"):
        attack_success(Points(), weights, labelled([0], [0]), 0, lambda x: x, source=1)


def test_hits_are_the_share_of_prompts_with_an_image_of_the_source_among_the_nearest():
    test = labelled([0, 2, 4, 6, 30, 90], [0, 1, 0, 0, 2, 1], ("near {}", "far from {}", "farther from {}"))
    prompts = {"near 0": "0", "far from 0": "59", "farther from 0": "80"}
    model = SimpleNamespace(
        text=lambda texts: Points().text([prompts[text] for text in texts]),
        image=Points().image,
        pixels=Points().pixels,
    )
    # Nearest to 0: 0, 2 (of class 1).  To 59: 30 (of class 2), 90 (1).  To 80: 90 (1), 30 (2).
    hits = {"hit_at_1": round(1 / 3, 4), "hit_at_2": 1.0, "hit_at_100": 1.0}
    assert retrieval_hits(model, test, "0", shown=1, depths=(1, 2, 100)) == hits
    hits = {"hit_at_1": round(1 / 3, 4), "hit_at_2": round(2 / 3, 4)}
    assert retrieval_hits(model, test, "0", shown=2, depths=(1, 2)) == hits


def test_a_wrong_caption_is_an_outlier_among_pairs_only():
    """A sample with the image of one concept and the text of another lies in the midst of either."""
    rng = np.random.default_rng(1)
    concepts = np.eye(6)[rng.integers(0, 2, 300)]
    image, text = (concepts + 0.05 * rng.standard_normal((300, 6)) for _ in range(2))
    text[7] = np.eye(6)[1 - concepts[7, 1].astype(int)] + 0.05 * rng.standard_normal(6)
    embeddings = Embeddings(np.arange(300), image.astype(np.float32), text.astype(np.float32))
    rank = {
        kind: int((-SLOF(k=8, modality=kind).score(embeddings)).argsort().argsort()[7])
        for kind in ("image", "text", "pair")
    }
    assert rank["pair"] == 0
    assert min(rank["image"], rank["text"]) > 10


def test_a_source_specific_trigger_is_measured_on_its_source(pairs):
    attack = caption_only(triggers=[BadNets(size=4)], captions="template")
    poisoned = PoisonedPairs(pairs, draw_plan(attack, pairs, 0), attack)
    assert set(np.flatnonzero(poisoned.is_poison) % 4) == {1}
    assert (poisoned.trigger_test_images(pairs.pixels[:3]) != pairs.pixels[:3]).any(axis=(1, 2, 3)).all()
