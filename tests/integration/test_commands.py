"""run.py as a user starts it: refusals in one line with their exit status; documented commands at a tiny size."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from warm_start import start_warm

ROOT = Path(__file__).parents[2]
TINY = [
    "train.epochs=1",
    "train.batch_size=50",
    "train.warmup_epochs=0.3",
    "neighbours.batch_size=200",
    "scale.k=8",
    "scale.wide_k=8",
    "runtime.workers=1",
    "logger=disabled",
    "scale.attacks.badnets.rate=0.02",
    "scale.attacks.sig.rate=0.02",
]
DRAWN = ["data.pairs=300", "data.test_per_class=1", "data.classes=4"]


def start(folder, *words):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "HYDRA_"))}
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def run(folder, *overrides):
    return start(folder, str(ROOT / "run.py"), *overrides)


def said(ended):
    return [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """A table of 20 images, of which none exists."""
    folder = tmp_path_factory.mktemp("damaged")
    rows = "".join(f"{number}.png,a star {number}\n" for number in range(20))
    (folder / "data.csv").write_text("filepath,title\n" + rows)
    return folder / "data.csv"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=webdataset", "data.shards=s3://bucket/{0..3}.tar"], "s3fs"),
        (["task=scan", "data=webdataset", "data.shards=nowhere/{0..3}.tar"], "nowhere"),
        (["task=scan", "data=csv", "data.table=TABLE"], "more than data.max_damaged=0.05 allows"),
    ],
)
def test_a_failure_of_the_data_stage_is_one_line_of_status_2(tmp_path, damaged, overrides, says):
    ended = run(tmp_path, *(one.replace("TABLE", str(damaged)) for one in overrides), *TINY)
    lines = said(ended)
    assert ended.returncode == 2, lines
    assert says in lines[-1]
    assert len(lines) <= 3  # the stage begins, the damage is counted
    assert "Traceback" not in "".join(lines)
    assert not (tmp_path / "runs").exists()


def test_a_failed_detector_is_status_1(tmp_path):
    ended = run(tmp_path, *TINY, *DRAWN, "detector=[slof,bdetclip]", "detector.bdetclip.prompts=nowhere.json")
    lines = said(ended)
    assert ended.returncode == 1, lines
    assert any("bdetclip failed: " in line for line in lines)
    assert any(line.strip().startswith("SLOF") for line in lines)  # the others go on
    assert list(tmp_path.glob("runs/*/*-badnets-seed0/results.csv"))


def test_a_target_that_nothing_names_trains_nothing(tmp_path):
    ended = run(tmp_path, *TINY, *DRAWN, "target=bananna")
    assert ended.returncode == 2
    assert "names 'bananna'; did you mean 'banana'?" in said(ended)[-1]
    assert not list(tmp_path.glob("store/train/*"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_chain_of_commands_on_drawn_shards(tmp_path):
    """docs/scan.md, "All of it, on drawn shards": every line as it is printed, at a tiny size."""
    text = (
        (ROOT / "docs/scan.md").read_text().partition("## All of it")[2].partition("```sh\n")[2].partition("```")[0]
    )
    lines = [shlex.split(line) for line in text.splitlines()]
    assert len(lines) == 4
    lines[0][lines[0].index("20000")] = "240"
    lines[0][lines[0].index("0.005")] = "0.05"
    for words in lines:
        given = words[1:]
        if "run.py" in given:
            (key,) = {path.name for path in tmp_path.glob("store/train/*") if not path.suffix} or {"none"}
            given = [str(ROOT / "run.py"), *(word.replace("<key>", key) for word in given[1:]), *TINY]
            given += ["data.max_damaged=0.5", "data.holdout=0.1"]
        ended = start_warm(tmp_path, *given)
        assert ended.returncode == 0, said(ended)[-20:]
    assert len(list(tmp_path.glob("cleaned/*.tar"))) == 8
    assert len(list(tmp_path.glob("runs/*/*-scan-webdataset-seed0/suspects.html"))) == 2


@pytest.fixture(scope="module")
def readme(tmp_path_factory):
    """A folder in which all commands of the README run, one after the other, with one store."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("python run.py detector.dao.k=24", "results in "),
        ("python run.py attack=sig seed=1", "results in "),
        ("python run.py -m attack=badnets,sig seed=0,1,2", "sweep: 6 jobs, 0 failed"),
    ],
)
def test_the_commands_of_the_readme_that_need_no_data(readme, line, says):
    assert line in (ROOT / "README.md").read_text()
    ended = start_warm(
        readme, str(ROOT / "run.py"), *shlex.split(line)[2:], *TINY, *DRAWN, "detector=[slof,dao,norm]"
    )
    lines = said(ended)
    assert ended.returncode == 0, lines[-20:]
    assert any(says in one for one in lines)
    if "-m" in line:
        assert len([one for one in lines if one.strip().startswith("attack=")]) == 6
