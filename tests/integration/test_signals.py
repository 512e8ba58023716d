"""`run.py` that is killed or asked to stop while its workers draw the data: they end with it, in one line."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def children(pid):
    """The numbers of the processes that `pid` has started."""
    tasks = Path(f"/proc/{pid}/task")
    return [int(n) for task in tasks.glob("*/children") for n in task.read_text().split()] if tasks.exists() else []


def alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_stopped_in_the_data_stage(number, tmp_path):
    command = [
        sys.executable,
        ROOT / "run.py",
        "data.pairs=400000",
        "runtime.workers=2",
        "logger=disabled",
        "runtime.store=store",
        "hydra.run.dir=runs",
    ]
    main = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    workers = []
    for _ in range(1200):
        workers = children(main.pid)
        if len(workers) >= 3 and list(tmp_path.glob("store/data/*.partial/images.npy")):  # one is multiprocessing's
            break
        time.sleep(0.1)
    assert len(workers) >= 3
    main.send_signal(number)
    said = main.communicate(timeout=60)[0]
    for _ in range(100):
        if not any(map(alive, workers)):
            break
        time.sleep(0.1)
    assert not any(map(alive, workers))
    assert main.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in said
    assert said.count("stopped by") == (number != signal.SIGKILL)
    assert not list(tmp_path.glob("store/data/*/meta.json"))
