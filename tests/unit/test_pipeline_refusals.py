"""Every refusal is one line and an exit status; a fault of the program keeps its traceback."""

import logging
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue
from pipeline_example import runner

from attacks import Attack
from experiments.data.damage import DamageReport, Issue
from experiments.runtime import refusals
from experiments.runtime.refusals import Diverged


def raised(do):
    with pytest.raises(Exception) as caught:  # noqa: PT011  of any kind
        do()
    return caught.value


def wrapped():
    try:
        raise socket.gaierror(-2, "Name or service not known")
    except OSError as error:
        raise KeyError("client") from error


def damaged(folder):
    report = DamageReport()
    report.add(10, [Issue(1, "a", "not an image")])
    report.finalise(folder, 0.05)


BAD = {"_target_": "attacks.Attack", "name": "x", "rate": 2, "triggers": []}


@pytest.mark.parametrize(
    ("do", "status", "says"),
    [
        (lambda: Attack(name="x", rate=2), 2, "attack.rate must be above 0 and at most 1, got 2"),
        (lambda: instantiate(OmegaConf.create(BAD)), 2, "attack.rate must be above 0 and at most 1, got 2"),
        (lambda: OmegaConf.create({"a": "???"}).a, 2, "Missing mandatory value: a"),
        (
            lambda: Path("/no/such/file").read_text(),
            2,
            "FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file'",
        ),
        (lambda: __import__("nosuchpackage"), 2, "No module named 'nosuchpackage'"),
        (wrapped, 2, "KeyError: 'client'"),  # the network, behind a client's own class
        (lambda: np.ones(3).reshape(2, 2), None, None),  # a library that was misused
        (lambda: int("x"), None, None),
        (lambda: {}["a"], None, None),
    ],
)
def test_what_one_line_explains(do, status, says):
    error = raised(do)
    assert refusals.status(error) == status
    if says:
        assert refusals.line(error) == says


def test_an_instantiation_that_fails_by_type_says_where():
    error = raised(lambda: instantiate(OmegaConf.create({"task": {"_target_": "attacks.Attack", "rte": 2}})))
    assert isinstance(error, InstantiationException)
    assert refusals.status(error) == 2
    assert refusals.line(error).startswith("task: TypeError: ")
    assert "\n" not in refusals.line(error)


def test_a_full_disk_is_one_line_of_status_1():
    assert refusals.status(OSError(28, "No space left on device")) == 1
    assert refusals.status(Diverged("training diverged")) == 1


def test_lines_are_joined():
    assert refusals.line(ValueError("a\n  b\n\nc")) == "a b c"
    assert refusals.line(MissingMandatoryValue("x\n full_key: y")) == "x"


def test_too_much_damage_is_bad_input(tmp_path):
    assert refusals.status(raised(lambda: damaged(tmp_path))) == 2


def test_a_refused_runs_folder_goes_and_a_result_stays(tmp_path):
    refused = tmp_path / "runs/2026-01-01/12-00-00-sig-seed0"
    for name in (".hydra", "wandb"):
        (refused / name).mkdir(parents=True)
    (refused / "run.log").touch()
    refusals.forget(refused)
    assert list(tmp_path.iterdir()) == []
    refused.mkdir(parents=True)
    (refused / "results.csv").touch()
    refusals.forget(refused)
    assert (refused / "results.csv").exists()
    refusals.forget(tmp_path / "nothing")


def test_what_all_detectors_need_fails_once(monkeypatch, tmp_path):
    from experiments.data import Shapes
    from experiments.pipeline.evaluation import run
    from experiments.tasks.scan import Scan

    tried = []

    def fail(self, *_):
        tried.append(1)
        raise ValueError("data.shards: nothing there")

    monkeypatch.setattr(Shapes, "build", fail)
    for work in (run, Scan().scan):
        with pytest.raises(ValueError, match="nothing there"):
            work(runner(f"runtime.store={tmp_path}"))
    assert len(tried) == 2


def test_a_detector_that_fails_is_one_line_unless_the_program_is_at_fault(caplog):
    with caplog.at_level(logging.ERROR):
        refusals.report("slof", ValueError("k must lie in 1..19, got 32"))
        refusals.report("lof", raised(lambda: {}["a"]))
    first, second = caplog.records
    assert first.getMessage() == "slof failed: k must lie in 1..19, got 32"
    assert not first.exc_info
    assert second.exc_info


def test_failed_detectors_of_a_scan_are_counted(tmp_path, monkeypatch):
    from experiments.tasks import perform as tasks

    result = SimpleNamespace(failed={"pyod": "no"}, write=lambda folder: ("", [{"n": 1}]))
    task = SimpleNamespace(run=lambda runner: result)
    runner = SimpleNamespace(store="s", experiment=SimpleNamespace(source=None))
    tally = tasks.carry_out(task, runner, tmp_path)
    assert (tally.done, tally.failed) == (1, 1)
    result.scan, result.failed = SimpleNamespace(failed={}), {"x": 1}  # of a cleaning the scan's count
    assert tasks.carry_out(task, runner, tmp_path).failed == 0


def test_a_detector_without_its_package_is_refused_with_a_command_of_this_clone(monkeypatch):
    from detect import PyOD
    from detect.base import INSTALL
    from detect.cleanlab import Cleanlab

    assert PyOD.packages == ("pyod",)
    assert Cleanlab.packages == ("cleanlab",)
    assert ".venv/bin/uv pip install -e '.[detectors]'" in INSTALL
