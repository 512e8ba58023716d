"""Groups of suspects: a planted natural backdoor comes out on top, an ordinary class and clean data stay quiet."""

import numpy as np
import pytest
from groups_example import CAKE, Planted

from experiments.tasks.group_measures import Group
from experiments.tasks.groups import Grouping, jaccard, leading_caption, words_of


@pytest.mark.parametrize("seed", range(5))
def test_the_planted_group_is_on_top_and_whole(seed):
    planted = Planted(copies=20, seed=seed)
    groups = Grouping(suspects=0.02).find(planted, planted.score)
    assert sorted(groups[0].rows) == list(range(980, 1000))
    assert groups[0].caption == CAKE
    assert groups[0].alarming
    assert groups[0].shared == 1
    assert groups[0].concentration > 0.99
    assert groups[0].pixels == pytest.approx(1)
    assert [group for group in groups[1:] if group.alarming] == []


@pytest.mark.parametrize("seed", range(5))
def test_clean_data_do_not_alarm(seed):
    clean = Planted(copies=0, seed=seed)
    groups = Grouping(suspects=0.1, near_cosine=0.9, like_cosine=0.8).find(clean, clean.score)
    assert groups  # the classes' own clusters
    assert [group for group in groups if group.alarming] == []


def test_a_pair_alone_is_no_group():
    planted = Planted(copies=2)
    planted.score[998:] = 9
    assert Grouping(suspects=0.02, near_cosine=0.99, like_cosine=0.99).find(planted, planted.score) == []


def test_a_group_under_an_ordinary_caption_is_not_isolated():
    """The same crowd, but its caption goes with its images everywhere else too."""
    planted = Planted(copies=20)
    twins = np.flatnonzero(planted.labels == 3)[:60]
    planted._vectors["image"][twins] = planted._vectors["image"][np.resize(np.arange(980, 1000), len(twins))]
    planted._vectors["text"][980:] = planted._vectors["text"][twins[0]]
    planted._vectors["text"][twins] = planted._vectors["text"][twins[0]]
    group = Grouping(suspects=0.02, near_cosine=0.999999).find(planted, planted.score)[0]
    assert group.isolation < 0.1


def test_captions_that_differ_in_a_number_are_one():
    captions = [f"{CAKE[:-1]}{number}" for number in range(8)] + ["a dog", "a cat"]
    assert leading_caption(captions, shared=0.8) == (captions[0], 0.8)
    assert jaccard(words_of("A photo of a Dog!"), words_of("dog, a photo of a")) == 1
    assert jaccard(words_of("a b c"), words_of("b c d")) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"suspects": 0}, "suspects"),
        ({"near_cosine": "close"}, "near_cosine must be a number, got 'close'"),
        ({"near_cosine": 0.5, "like_cosine": 0.9}, "like_cosine"),
        ({"smallest": 1}, "smallest"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, name):
    with pytest.raises(ValueError, match=name):
        Grouping(**settings)


def test_pictures_without_captions_are_grouped_and_never_alarming():
    planted = Planted(copies=20)
    planted.captions = [""] * len(planted)
    planted._vectors["text"] = np.tile(planted._vectors["text"][:1], (len(planted), 1))
    groups = Grouping(suspects=0.02).find(planted, planted.score)
    assert sorted(groups[0].rows) == list(range(980, 1000))
    assert groups[0].strength > 1
    assert not any(group.alarming for group in groups)


def test_where_many_groups_are_strong_only_one_that_stands_out_is_alarming():
    rows = np.arange(20)
    strengths = [*np.linspace(0.6, 1.6, 24), 3.4]  # ordinary ones throughout, and a planted one
    groups = [Group(rows, "a", 1, 1, 1, 1, 1, 1, strength, False) for strength in strengths]
    assert [group.alarming for group in Grouping()._judged(groups)] == [False] * 24 + [True]
    few = [*groups[-3:], *groups[:2]]
    assert [group.alarming for group in Grouping()._judged(few)] == [True, True, True, False, False]
    loose = Grouping(alarm_deviations=0)._judged(groups)
    assert [group.alarming for group in loose] == [strength >= np.median(strengths) for strength in strengths]
