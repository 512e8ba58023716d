"""A package of another author (tests/third_party), installed beside ours, adds a detector and an attack."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pipeline_example import runner

from experiments.pipeline import config, entry_points

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "tests" / "third_party"
config.register()
CHOSEN = ["detector=[nearby,slof]", "attack=corner", "normalise=[true]"]
PROJECT = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]


def install(folder, version=PROJECT["version"], name="lookout-nearby", points=PROJECT["entry-points"]):
    """What an installer leaves in `site-packages`: the package, and what is known of it."""
    shutil.copytree(SOURCE / "lookout_nearby", folder / "lookout_nearby", dirs_exist_ok=True)
    facts = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, named in points.items():
        lines += [f"[{group}]", *(f"{choice} = {value}" for choice, value in named.items())]
    (facts / "entry_points.txt").write_text("\n".join(lines))
    entry_points._contributions.cache_clear()
    return facts


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path to install into; forgotten afterwards."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    entry_points._contributions.cache_clear()
    yield folder
    entry_points._contributions.cache_clear()
    for name in [name for name in sys.modules if name.startswith("lookout_nearby")]:
        del sys.modules[name]


def program(site, *arguments):
    variables = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=site.parent,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_both_can_be_chosen_and_stand_in_the_help(site):
    install(site)
    ended = program(site, *CHOSEN, "detector.nearby.k=5", "--cfg", "job")
    assert ended.returncode == 0, ended.stderr
    assert "_target_: lookout_nearby.Nearby" in ended.stdout
    assert "_target_: lookout_nearby.Corner" in ended.stdout
    assert "k: 5" in ended.stdout
    ended = program(site, "--help")
    assert ", nearby, " in ended.stdout
    assert "attack: adaptive_flood" in ended.stdout
    assert "corner" in ended.stdout


@pytest.mark.slow
def test_in_a_sweep(site):
    install(site)
    tiny = ["data.pairs=300", "data.test_per_class=1", "data.classes=4", "train.epochs=1", "train.batch_size=50"]
    tiny += ["train.warmup_epochs=0.3", "neighbours.batch_size=200", "scale.k=8", "runtime.workers=1"]
    ended = program(site, "-m", *CHOSEN, *tiny, "logger=disabled")
    assert ended.returncode == 0, ended.stderr
    assert "nearby" in ended.stdout
    assert "attack corner" in ended.stdout


def test_a_word_mistyped_is_answered_with_theirs_too(site):
    install(site)
    said = config.refused(["detector=[nearbi]"])
    assert said.startswith("detector=nearbi: there is no 'nearbi'; did you mean 'nearby'?")
    assert config.refused(["attack=cornet"]).startswith(
        "attack=cornet: there is no 'cornet'; did you mean 'corner'?"
    )
    assert "corner" in config.refused(["attack="])
    assert config.refused(CHOSEN) is None


def test_without_it_there_are_no_such_choices(site):
    assert config.refused(["detector=[nearby]"]).startswith("detector=nearby: there is no 'nearby'")


def keys():
    made = runner(*CHOSEN)
    scores = {spec.detector: made.key("scores", spec=spec) for spec in made.experiment.specs()}
    return scores | {"plan": made.key("plan")}


def test_its_version_and_that_of_its_detector_are_in_the_keys(site, monkeypatch):
    before_all = runner("detector=[slof]", "normalise=[true]").key("plan")
    facts = install(site)
    first = keys()
    assert runner("detector=[slof]", "normalise=[true]").key("plan") == before_all  # what it is not part of
    import lookout_nearby

    monkeypatch.setattr(lookout_nearby.Nearby, "version", 2)
    raised = keys()
    assert raised["nearby"] != first["nearby"]
    assert (raised["slof"], raised["plan"]) == (first["slof"], first["plan"])
    monkeypatch.setattr(lookout_nearby.Nearby, "version", 1)
    shutil.rmtree(facts)
    install(site, version="1.1")
    newer = keys()
    assert newer["nearby"] != first["nearby"]
    assert newer["plan"] != first["plan"]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (
            {"lookout.detectors": {"slof": "lookout_nearby"}},
            "lookout-other offers detector=slof in lookout_nearby, but there is no file detector/slof.yaml",
        ),
        (
            {"lookout.detectors": {"mine": "lookout_absent.conf"}},
            "offers detector=mine in lookout_absent.conf, which cannot be imported: ModuleNotFoundError",
        ),
        ({"lookout.attacks": {"mine": "lookout_absent"}}, "but there is no file attack/mine.yaml"),
        ({"lookout.attacks": {"mine": "math"}}, "but there is no file attack/mine.yaml"),
        (
            {"lookout.detectors": {"nearby": "lookout_nearby"}},
            "detector=nearby is offered twice, by lookout-nearby and by lookout-other: remove one of them",
        ),
    ],
)
def test_what_leads_nowhere_or_takes_a_name_is_refused_in_one_line(site, points, said):
    install(site)
    install(site, name="lookout-other", points=points)
    ended = program(site, "detector=[slof]", "--cfg", "job")
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_name_of_ours_is_not_taken(site):
    install(site, points={"lookout.detectors": {"slof": "lookout_nearby"}})
    shutil.copy(site / "lookout_nearby/detector/nearby.yaml", site / "lookout_nearby/detector/slof.yaml")
    with pytest.raises(ValueError, match="detector=slof is offered twice, by Lookout itself and by lookout-nearby"):
        config.refused(["detector=[dao]"])
