"""`run.py --stages` prints every stage, what the store holds of it and this configuration's keys."""

import subprocess
import sys
from pathlib import Path

import pytest
from pipeline_example import runner

from experiments.pipeline import config
from experiments.pipeline.graph import STAGES
from experiments.pipeline.overview import overview, summary

ROOT = Path(__file__).parents[2]
SMALL = ("data.pairs=60", "train.batch_size=20", "attack.rate=0.05", "detector=[clip_score]")


def block(text, name):
    """The lines of one stored stage."""
    return next(part for part in text.split("\n\n") if part.startswith(f"{name} (")).splitlines()


def test_every_stage_is_there_and_nothing_is_computed(tmp_path):
    made = runner(f"runtime.store={tmp_path / 'store'}", "detector=[slof,clip_score]")
    text = overview(made)
    assert not (tmp_path / "store").exists()
    for stage in STAGES.values():
        assert summary(stage) in text
    train = block(text, "train")
    assert train[0].startswith("train (version 3): ")
    assert train[2] == "  takes  clean, test, train_ids, poisoning"
    assert train[3] == "  reads  model_spec, training, seed, targets, threads, train_on"
    assert train[4:] == ["  store  0 finished", f"  here   {made.key('trained')} not in the store"]
    assert len(block(text, "score")) == len(block(text, "evaluate")) == 8
    for unused in ("fetch", "test", "views"):
        assert block(text, unused)[-1] == "  here   not used by this configuration"


def test_it_says_what_the_store_holds(tmp_path):
    store = f"runtime.store={tmp_path / 'store'}"
    made = runner(store, *SMALL)
    made.value("plan")
    (tmp_path / "store/data/0123.partial").mkdir()
    (tmp_path / "store/data/0123.partial/meta.json").touch()
    text = overview(runner(store, *SMALL))
    for name, gives in (("data", "data"), ("plan", "plan")):
        assert block(text, name)[-2:] == ["  store  1 finished", f"  here   {made.key(gives)} in the store"]
    other = overview(runner(store, *SMALL, "seed=1"))
    assert block(other, "plan")[-2] == "  store  1 finished"
    assert block(other, "plan")[-1].endswith(" not in the store")


def test_a_wider_table_in_the_store_is_the_one_that_is_named(tmp_path):
    store = f"runtime.store={tmp_path / 'store'}"
    made = runner(store, "detector=[slof]", "normalise=[true]", "detector.slof.k=8")
    [search] = {made.experiment.detector(spec).search for spec in made.experiment.specs()}
    wide = made.recipe("neighbours", {"search": search, "k": 20}).key + "-20"
    (tmp_path / "store/neighbours" / wide).mkdir(parents=True)
    assert f"  here   {wide} in the store, k=8 " in "\n".join(block(overview(made), "neighbours"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-m", "seed=1"], "--stages takes overrides (key=value) beside it, got -m"),
        (["--cfg", "job"], "--stages takes overrides (key=value) beside it, got --cfg"),
        (["seed=1,2"], "--stages shows one configuration: Ambiguous value for argument 'seed=1,2'"),
    ],
)
def test_what_is_not_one_configuration_is_refused(arguments, says):
    with pytest.raises(ValueError, match="--stages") as error:
        config.composed(arguments)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_the_command(tmp_path):
    command = [sys.executable, str(ROOT / "run.py"), "--stages"]
    store = [f"runtime.store={tmp_path / 'store'}", "detector=[slof]"]
    shown = subprocess.run([*command, *store], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert block(shown.stdout, "data")[-2] == "  store  0 finished"
    assert not list(tmp_path.iterdir())
    refused = subprocess.run([*command, "detector=[slof]", "sed=1"], cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("sed: there is no 'sed'; did you mean 'seed'?")
    assert refused.stderr.count("\n") == 1


def test_the_help_names_it():
    assert "python run.py --stages " in (ROOT / "conf/config.yaml").read_text()
