"""Every command line of README.md, the other pages and the heads of the YAML files is understood as printed."""

import itertools
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands_example import ROOT, commands, overrides
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from experiments.pipeline import config as schema
from experiments.pipeline.config_values import check_values, follow_size, settle_size

FOUND = commands()
RUNS = sorted({(place, *given) for place, words in FOUND if (given := overrides(words)) is not None})
ONCE = {tuple(given): place for place, *given in RUNS}  # each command line, and a place where it stands
OTHERS = sorted({(place, *words) for place, words in FOUND if overrides(words) is None})


schema.register()


def first_job(given):
    """The configuration of the first job that Hydra would make of these overrides."""
    parsed = OverridesParser.create().parse_overrides([schema.quote_patterns(one) for one in given])
    fixed = [override.input_line for override in parsed if not override.is_sweep_override()]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = compose("config", fixed, return_hydra_config=True)
        params = OmegaConf.to_container(whole.hydra.sweeper, resolve=True)["params"] or {}
        own = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
        if len(fixed) == len(parsed) and not own:
            with open_dict(whole):
                del whole["hydra"]
            return whole
        return compose("config", next(iter(BasicSweeper.split_arguments(own + parsed, None)[0])))


def test_the_pages_and_heads_are_read():
    places = {place for place, *_ in RUNS}
    assert {"README.md", "CONTRIBUTING.md", "docs/scan.md", "docs/data.md", "docs/reproduce.md"} <= places
    assert {"conf/model/open_clip.yaml", "conf/data/csv.yaml", "conf/experiment/seeds.yaml"} <= places
    assert len(RUNS) > 70
    assert (
        "README.md",
        "task=scan",
        "data=webdataset",
        "data.shards=shards/{00000..00007}.tar",
        "model=rn50",
        "model.checkpoint=clip.pt",
    ) in RUNS


@pytest.mark.parametrize("command", ONCE, ids=lambda command: f"{ONCE[command]} {' '.join(command)[:70]}")
def test_it_composes(command):
    if ONCE[command] == "CONTRIBUTING.md" and "mine" in " ".join(command):
        pytest.skip("tests/integration/test_recipes.py adds what it names")
    if any(one.startswith("--") for one in command):
        assert set(command) <= {"--help", "--cfg", "job", "--stages"}
        return
    given = [one for one in command if one != "-m"]
    if not find_spec("hydra_plugins.hydra_submitit_launcher"):  # an optional extra
        given = [one for one in given if not one.startswith(("hydra/launcher=", "hydra.launcher"))]
    config = first_job(given)
    check_values(config)
    config = settle_size(config)
    if size := config.model.get("size"):
        config = follow_size(config, size)
        assert config.data.size == size  # else it is refused before any work


@pytest.mark.parametrize("command", OTHERS, ids=lambda command: f"{command[0]} {' '.join(command[1:])[:70]}")
def test_its_program_has_these_options(command):
    _, program, *words = command
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert [word for word in words if "=" not in word and word not in targets and word != "--quick"] == []
        return
    assert "-m" in words, "a program of the house is called by -m"
    name, *given = words[words.index("-m") + 1 :]
    module = Path(*name.split("."))
    files = [ROOT / module / "__main__.py", (ROOT / module).with_suffix(".py")]
    files += [ROOT / module / f"{word}.py" for word in given[:1]]  # a command of it, such as `export`
    source = "".join(file.read_text() for file in files if file.exists())
    assert source
    options = itertools.takewhile(lambda word: word != "#", words)
    assert [word for word in options if word.startswith("--") and f'"{word}"' not in source] == []
