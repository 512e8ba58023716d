"""Every YAML of the data and eval groups: its target's options, all of them, with the same defaults."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
NAMED = ("cc3m", "cc12m", "redcaps", "cifar10", "tinyimagenet100")
CHOICES = [f"{group}/{file.stem}" for group in ("data", "eval") for file in sorted((CONF / group).glob("*.yaml"))]


def _load(choice):
    """The group's own configuration, its defaults merged, interpolations left as they are."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(choice)
    for part in choice.split("/")[:-1]:
        config = config[part]
    return OmegaConf.to_container(config, resolve=False)


@pytest.mark.parametrize("choice", CHOICES)
def test_options_and_defaults_are_those_of_the_class(choice):
    config = _load(choice)
    target = get_class(config.pop("_target_"))
    fields = {field.name: field for field in dataclasses.fields(target)}
    assert set(config) == set(fields)
    for name, value in config.items():
        if isinstance(value, str) and ("${" in value or value == "???"):
            continue  # set elsewhere
        default = fields[name].default
        default = list(default) if isinstance(default, tuple) else default
        if choice.split("/")[1] in ("imagenet", "tinyimagenet100") and name == "classes":
            default = "imagenet"
        if name == "name" and choice.partition("/")[2] in NAMED:
            default = choice.partition("/")[2]
        if (choice, name) == ("eval/folders", "path"):
            default = ""  # must be given: the class says what else can be chosen
        assert value == default, name


def test_the_data_sets_of_the_paper_differ_from_webdataset_in_folder_and_name():
    base = _load("data/webdataset")
    for name in ("cc3m", "cc12m", "redcaps"):
        config = _load(f"data/{name}")
        assert {key for key in config if config[key] != base[key]} == {"shards", "name"}
        assert config["shards"].endswith(f"/{name}")
