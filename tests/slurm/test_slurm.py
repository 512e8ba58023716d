"""Sweeps through a real Slurm of one node that these tests start; `make test-slurm` installs it and runs them."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged")
ABSENT = [name for name in NEEDED if shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin") is None]
TINY = [
    "data.test_per_class=2",
    "data.classes=4",
    "train.batch_size=100",
    "train.warmup_epochs=0.3",
    "neighbours.batch_size=200",
    "scale.attacks.badnets.rate=0.02",
    "scale.k=8",
    "scale.wide_k=8",
    "logger=disabled",
    "runtime.workers=1",
    "runtime.threads=1",
    "detector=[slof,norm]",
]

STARTED: list[subprocess.Popen] = []

pytestmark = [
    pytest.mark.slow,
    # They start daemons and take minutes.
    pytest.mark.skipif("LOOKOUT_TEST_SLURM" not in os.environ, reason="only in `make test-slurm`"),
    pytest.mark.skipif(bool(ABSENT), reason=f"no {', '.join(ABSENT)} here; `make test-slurm` installs Slurm"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons are started as root"),
]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the optional extra `slurm` is missing")
    folder = tmp_path_factory.mktemp("slurm")
    path = f"{folder / 'bin'}:{os.environ['PATH']}:/usr/sbin"
    env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path, "OMP_NUM_THREADS": "1"}
    start = [ROOT / "tests/slurm/start.sh", folder, str(free_port()), str(free_port())]
    subprocess.run(start, env=env, check=True, timeout=60)
    yield env
    for process in STARTED:
        process.kill()
    subprocess.run(["scancel", "-u", "root"], env=env, check=False, timeout=30)
    for daemon in ("slurmd", "slurmctld"):
        os.kill(int((folder / f"{daemon}.pid").read_text()), signal.SIGKILL)


def launch(env, folder, *overrides):
    command = [
        sys.executable,
        "run.py",
        "-m",
        "hydra/launcher=slurm_cpu",
        "hydra.launcher.cpus_per_task=1",
        "hydra.launcher.mem_gb=1",
        f"hydra.sweep.dir={folder / 'sweep'}",
        f"runtime.store={folder / 'store'}",
        *TINY,
        *overrides,
    ]
    with open(folder / "log", "w") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)
    STARTED.append(process)
    return process


def finish(process, folder, seconds=540):
    try:
        process.wait(seconds)
    finally:
        process.kill()
    return process.returncode, (folder / "log").read_text()


def rows(folder):
    with open(folder / "sweep/results.csv", newline="") as file:
        return list(csv.DictReader(file))


def job_logs(folder):
    return [file.read_text() for file in sorted(folder.glob("sweep/.submitit/*/*_log.out"))]


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def test_parallel_jobs_share_one_model(slurm, tmp_path):
    process = launch(slurm, tmp_path, "data.pairs=4000", "train.epochs=1", "scale.k=4,8,16")
    status, log = finish(process, tmp_path)
    assert status == 0, log
    # `norm` knows no k: one job scores it, the others find it in the store.
    assert "sweep: 3 jobs, 0 failed; 7 cells done, 2 reused, 0 failed" in log
    assert len(list(tmp_path.glob("store/train/*/meta.json"))) == 1
    assert sorted({row["k"] for row in rows(tmp_path) if row["k"]}, key=float) == ["4.0", "8.0", "16.0"]
    text = "".join(job_logs(tmp_path))
    assert text.count("train      done in") == 1
    assert "another job is computing it, waiting" in text


def test_a_failed_job_is_a_row_and_the_others_go_on(slurm, tmp_path):
    process = launch(slurm, tmp_path, "data.pairs=400", "train.epochs=1", "attack.rate=0.02,0.0001")
    status, log = finish(process, tmp_path)
    assert status == 1, log
    assert "sweep: 2 jobs, 1 failed; 3 cells done, 0 reused, 0 failed" in log
    failed = [row for row in rows(tmp_path) if row["status"] == "failed"]
    assert len(failed) == 1
    assert "must poison at least one sample" in failed[0]["error"]


def test_two_tasks_train_one_model_together(slurm, tmp_path):
    process = launch(
        slurm,
        tmp_path,
        "data.pairs=400",
        "train.epochs=1",
        "hydra.launcher.tasks_per_node=2",
        "seed=0",
    )
    status, log = finish(process, tmp_path)
    assert status == 0, log
    assert "sweep: 1 jobs, 0 failed; 3 cells done" in log
    assert all(row["status"] == "ok" for row in rows(tmp_path))


def test_a_requeued_job_goes_on_where_it_was(slurm, tmp_path):
    process = launch(
        slurm,
        tmp_path,
        "data.pairs=2000",
        "train.epochs=5",
        "runtime.checkpoint_seconds=0.1",
        "seed=0",
    )
    wait_for(lambda: any("epoch 1 " in text for text in job_logs(tmp_path)))
    job = next(tmp_path.glob("sweep/.submitit/*/*_log.out")).parent.name
    subprocess.run(["scontrol", "requeue", job], env=slurm, check=True, timeout=30)
    # Slurm holds a requeued job back for some minutes, unless it is told that it may begin.
    wait_for(lambda: "PENDING" in state(slurm, job))
    subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], env=slurm, check=True, timeout=30)
    status, log = finish(process, tmp_path)
    assert status == 0, log
    text = "".join(job_logs(tmp_path))
    assert "train: resuming at step" in text
    history = next(tmp_path.glob("store/train/*/history.jsonl")).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in history] == list(range(1, 6))


def state(env, job):
    return subprocess.run(
        ["scontrol", "-o", "show", "job", job], env=env, capture_output=True, text=True, timeout=30
    ).stdout
