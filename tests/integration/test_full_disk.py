"""A full disk at every stage: the run ends with one line, and with more room the same command ends well."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from conftest import mounted  # noqa: F401  the fixture

from experiments.pipeline import config as schema
from experiments.pipeline.evaluation import run
from experiments.pipeline.runner import Runner
from experiments.runtime import stopping

ROOT = Path(__file__).parents[2]
TINY = [
    "data.pairs=200",
    "data.test_per_class=2",
    "data.classes=4",
    "scale.attacks.badnets.rate=0.02",
    "train.epochs=1",
    "train.batch_size=100",
    "neighbours.batch_size=100",
    "scale.k=8",
    "scale.wide_k=8",
    "logger=disabled",
    "detector=[tandem,norm]",
    "runtime.workers=1",
]
# What is needed only while scores are missing is removed with them.
STAGES = {
    "data": ["data"],
    "plan": ["plan"],
    "train": ["train"],
    "measure": ["measure"],
    "embed": ["embed"],
    "neighbours": ["neighbours", "score", "evaluate"],
    "views": ["views", "score", "evaluate"],
    "score": ["score", "evaluate"],
    "evaluate": ["evaluate"],
}
ROOM = (0, 0.3, 0.6, 0.9)  # of what the stage needs
PAGE = 4096


def rows(store):
    """The table of a run with all its stages, without times and memory."""
    schema.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cells = run(Runner.of(compose("config", [*TINY, f"runtime.store={store}"]))).cells
    return json.dumps([{k: v for k, v in c.row.items() if k not in ("seconds", "memory_mb")} for c in cells])


def attempt(store):
    """The table, or what a run that finds the disk full says."""
    try:
        return rows(store)
    except stopping.DiskFull as error:
        return str(error)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = tmp_path_factory.mktemp("finished") / "store"
    return store, rows(store)


def pages(folder):
    """What the files and folders of `folder` take on a small disk, in bytes."""
    return sum(PAGE * -(-path.stat().st_size // PAGE) for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_full_at_a_stage(stage, finished, mounted):  # noqa: F811
    whole, table = finished
    disk = mounted("64m")
    store = disk / "store"
    shutil.copytree(whole, store, ignore=shutil.ignore_patterns("*.lock"))
    for name in STAGES[stage]:
        shutil.rmtree(store / name)
    taken, needed = pages(store), pages(whole / STAGES[stage][0])
    stopped = 0
    for share in ROOM:
        room = PAGE * (1 + int(share * needed / PAGE))
        subprocess.run(["mount", "-o", f"remount,size={taken + room}", disk], check=True)
        said = attempt(store)
        if said == table:  # a small stage has room now
            break
        names = "|".join(STAGES[stage])
        assert re.fullmatch(rf"the disk of {store} is full \(({names}) [\w-]+\)\. .* once there is room", said)
        stopped += 1
    assert stopped
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert rows(store) == table
    assert not (store / "set-aside").exists()
    assert not list(store.glob("evaluate/*.failed.json"))


@pytest.mark.slow
def test_the_command_says_it_in_one_line(tmp_path, mounted):  # noqa: F811
    store = mounted("100k") / "store"
    done = subprocess.run(
        [sys.executable, ROOT / "run.py", *TINY, f"runtime.store={store}", "hydra.run.dir=runs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert said.count(f"the disk of {store} is full (data ") == 1
    assert "Traceback" not in said
    assert said.strip().endswith("once there is room")
