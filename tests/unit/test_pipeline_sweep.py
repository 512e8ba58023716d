"""What a sweep records of its jobs, and how it ends, with a task that computes nothing."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.pipeline.sweep import KILLED, CellCounts, join, records
from experiments.pipeline.sweep_table import sweep_table

ROOT = Path(__file__).parents[2]
# Stands in for run.py: a job writes its rows and tells its cells, fails where alpha is 0.
SCRIPT = """
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig
from experiments.pipeline.sweep import CellCounts

@hydra.main(version_base="1.3", config_path=None, config_name=None)
def main(config):
    if config.alpha == 0:
        raise ValueError("alpha must be above 0, got 0")
    with open(Path(HydraConfig.get().runtime.output_dir) / "results.csv", "w") as file:
        file.write(f"attack,auroc,detector,asr\\nsig,0.{config.alpha},slof,0.9\\nsig,0.5,lof,0.9\\n")
    return CellCounts(done=1, reused=config.alpha)

main()
"""


def sweep(folder, *overrides):
    script = folder / "task.py"
    script.write_text(SCRIPT)
    command = [
        sys.executable,
        str(script),
        "-m",
        "+seed=0",
        "+attack.name=sig",
        f"hydra.sweep.dir={folder / 'sweep'}",
        "+hydra.callbacks.sweep._target_=experiments.pipeline.sweep.Sweep",
        *overrides,
    ]
    return subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )


def rows(folder):
    with open(folder / "sweep/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_sweep_joins_its_results_and_counts_cells(tmp_path):
    ended = sweep(tmp_path, "+alpha=1,2")
    assert ended.returncode == 0, ended.stderr
    assert "sweep: 2 jobs, 0 failed; 2 cells done, 3 reused, 0 failed" in ended.stdout
    assert [(row["job"], row["auroc"]) for row in rows(tmp_path)] == [
        ("0", "0.1"),
        ("0", "0.5"),
        ("1", "0.2"),
        ("1", "0.5"),
    ]


def test_a_failed_job_is_recorded_and_the_sweep_goes_on(tmp_path):
    ended = sweep(tmp_path, "+alpha=1,0,2")
    assert ended.returncode == 1
    assert "sweep: 3 jobs, 1 failed; 2 cells done, 3 reused, 0 failed" in ended.stdout
    hole = rows(tmp_path)[2]
    assert (hole["job"], hole["attack"], hole["seed"], hole["status"]) == ("1", "sig", "0", "failed")
    assert hole["error"] == "ValueError: alpha must be above 0, got 0"
    record = json.loads((tmp_path / "sweep/1/job.json").read_text())
    assert "main" in "".join(record["traceback"])


def test_a_second_sweep_into_the_folder_forgets_the_first(tmp_path):
    sweep(tmp_path, "+alpha=1,0")
    ended = sweep(tmp_path, "+alpha=3")
    assert ended.returncode == 0, ended.stderr
    assert "sweep: 1 jobs, 0 failed; 1 cells done, 3 reused" in ended.stdout
    assert {row["job"] for row in rows(tmp_path)} == {"0"}


@pytest.fixture
def killed(tmp_path):
    for number, ended in ((10, False), (2, True)):
        job = tmp_path / f"{number}-sig-seed0"
        (job / ".hydra").mkdir(parents=True)
        (job / ".hydra/overrides.yaml").write_text("- seed=0\n")
        if ended:
            about = {"overrides": [], "status": "ok", "error": "", "cells": {"done": 1, "reused": 0, "failed": 0}}
            (job / "job.json").write_text(json.dumps(about))
            (job / "results.csv").write_text("attack\nsig\n")
    return tmp_path


def test_a_killed_job_is_a_failed_one(killed):
    jobs = records(killed)
    assert list(jobs) == ["2-sig-seed0", "10-sig-seed0"]
    assert jobs["10-sig-seed0"]["error"] == KILLED
    join(killed, jobs)
    lines = (killed / "results.csv").read_text().splitlines()
    assert lines == [
        "job,attack,overrides,status,error",
        "2-sig-seed0,sig,,,",
        f'10-sig-seed0,,seed=0,failed,"{KILLED}"',
    ]


def test_a_sweep_ends_with_its_table(tmp_path):
    ended = sweep(tmp_path, "+alpha=1,0,2")
    lines = [line for line in ended.stdout.splitlines() if "alpha=" in line and "failed:" not in line]
    shown = [line.split() for line in lines if "[HYDRA]" not in line]
    assert [line for line in shown if line[0].startswith("+alpha")] == [
        ["+alpha=1", "0.900", "0.100", "0.500"],
        ["+alpha=0", "–", "failed"],
        ["+alpha=2", "0.900", "0.200", "0.500"],
    ]


def test_the_table_shows_what_jobs_differ_in_and_normalised_scores():
    jobs = {
        "0": {"overrides": ["seed=0", "attack=sig"], "status": "ok"},
        "1": {"overrides": ["seed=0", "attack=none"], "status": "ok"},
    }
    rows = [
        {"job": "0", "detector": "slof", "normalise": "False", "auroc": "0.1", "asr": "0.9"},
        {"job": "0", "detector": "slof", "normalise": "True", "auroc": "0.7", "asr": "0.9"},
        {"job": "1", "detector": "slof", "normalise": "False", "auroc": "", "asr": ""},
        {"job": "1", "detector": "norm", "normalise": "", "auroc": "nan", "asr": ""},
    ]
    table = sweep_table(jobs, rows)
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    assert [column.header for column in table.columns] == ["job", "ASR", "slof", "norm"]
    assert columns == [["attack=sig", "attack=none"], ["0.900", "–"], ["0.700", "–"], ["–", "–"]]
    assert sweep_table(jobs, [{"job": "0", "status": "ok"}]) is None


def test_tallies_add_up():
    assert CellCounts(1, 2, 3) + CellCounts(4, 5, 6) == CellCounts(5, 7, 9)
