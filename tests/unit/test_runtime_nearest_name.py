"""The hint behind a refused name."""

from experiments.runtime.nearest_name import did_you_mean, nearest_names


def test_the_nearest_choice_is_named_whatever_its_case():
    assert did_you_mean("captoin", ["caption", "key"]) == "; did you mean 'caption'?"
    assert did_you_mean("CAPTION", ["Caption", "key"]) == "; did you mean 'Caption'?"
    assert did_you_mean("xyz", ["caption", "key"]) == did_you_mean("xyz", []) == ""


def test_several_come_nearest_first():
    assert nearest_names("rn50", ["ViT-B-32", "RN50x4", "RN50"], 2) == ["RN50", "RN50x4"]
