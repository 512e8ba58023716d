"""How a run ends: the one line for a full disk or a dead worker, and processes that end with their parent."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from stopping_example import die, note_and_wait

from experiments.runtime import stopping
from experiments.runtime.loading import load_items
from experiments.runtime.process_pool import run_jobs
from experiments.runtime.stopping import DiskFull, WorkerDied
from experiments.runtime.store import Recipe, Store

ROOT = Path(__file__).parents[2]
RECIPE = Recipe("embed", 1, {})


def gone(pid):
    """Whether a process has ended, within some seconds."""
    for _ in range(100):
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


# --- a full disk ------------------------------------------------------------------------------------------------


def no_room(folder):
    raise OSError(errno.ENOSPC, "No space left on device", str(folder / "image.npy"))


def quota(folder):
    raise OSError(errno.EDQUOT, "Disk quota exceeded", str(folder / "image.npy"))


def as_safetensors(folder):
    raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("fail", [no_room, quota, as_safetensors])
def test_a_full_disk_ends_the_run_and_the_next_one_goes_on(tmp_path, fail):
    (tmp_path / "embed" / f"{RECIPE.key}.partial").mkdir(parents=True)
    (tmp_path / "embed" / f"{RECIPE.key}.partial" / "part").write_text("of an earlier run")
    with pytest.raises(DiskFull, match=rf"^the disk of {tmp_path} is full \(embed {RECIPE.key}\)\. .* room$"):
        Store(tmp_path).get(RECIPE, fail)
    entry = Store(tmp_path).get(RECIPE, lambda folder: (folder / "image.npy").write_text("x") and None)
    assert (entry.path / "part").exists()


@pytest.mark.parametrize(
    "where", ["experiments.runtime.store.sync", "experiments.runtime.store.write_whole", "pathlib.Path.rename"]
)
def test_a_disk_that_is_full_when_a_result_is_published_loses_nothing(tmp_path, monkeypatch, where):
    made = []

    def make(folder):
        made.append((folder / "image.npy").exists())
        (folder / "image.npy").write_text("x")

    with monkeypatch.context() as full:
        full.setattr(where, lambda *_: no_room(tmp_path))
        with pytest.raises(DiskFull):
            Store(tmp_path).get(RECIPE, make)
    assert not Store(tmp_path).has(RECIPE)
    assert not Store(tmp_path).get(RECIPE, make).reused
    assert made == [False, True]


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: np.save(folder / "rows.npy", np.ones(10**6)),  # its error has no number
        lambda folder: torch.save(torch.ones(10**6), folder / "checkpoint.pt"),
        lambda folder: (folder / "text").write_text("x" * 10**7),
        lambda folder: [(folder / str(i)).write_bytes(bytes(1000)) for i in range(2000)],
    ],
    ids=["numpy", "torch", "text", "small files"],
)
def test_whatever_library_finds_the_disk_full(mounted, write):
    disk = mounted("1m")
    with pytest.raises(DiskFull):
        Store(disk / "store").get(RECIPE, lambda folder: write(folder) and None)
    subprocess.run(["mount", "-o", "remount,size=40m", disk], check=True)
    assert not Store(disk / "store").get(RECIPE, lambda folder: write(folder) and None).reused
    assert Store(disk / "store").has(RECIPE)


def test_a_disk_without_a_byte_or_a_name_left(mounted):
    disk = mounted("1m,nr_inodes=2")
    (disk / "store").mkdir()
    with pytest.raises(DiskFull, match="is full"):
        Store(disk / "store").get(RECIPE, lambda folder: None)
    subprocess.run(["mount", "-o", "remount,nr_inodes=100", disk], check=True)
    assert not Store(disk / "store").get(RECIPE, lambda folder: None).reused


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    def fail(folder):
        raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted") as raised:
        Store(tmp_path).get(RECIPE, fail)
    assert stopping.reason(raised.value) is None
    assert stopping.reason(OSError(errno.ENOENT, "gone")) is None
    assert stopping.reason(OSError(errno.ENOSPC, "full", "runs/x")).startswith("the disk is full: runs/x (")


# --- workers ----------------------------------------------------------------------------------------------------


def test_a_dead_worker_ends_the_work_with_one_line():
    with pytest.raises(WorkerDied, match=r"^a worker process died: it was killed.*runtime\.workers=0.*--shm-size"):
        list(run_jobs(die, [1, 2, 3], 2))


class Numbers(torch.utils.data.Dataset):
    """Batches of a tensor and a number; `at` calls the item that kills its process."""

    def __init__(self, size, at=None):
        self.size, self.at = size, at

    def __getitem__(self, index):
        if index == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full((self.size,), index), index


def test_a_dead_loader_ends_the_run_with_one_line():
    with pytest.raises((WorkerDied, RuntimeError)) as raised:
        list(load_items(Numbers(4, at=2), range(6), 2, False))
    assert "--shm-size" in stopping.reason(raised.value)
    assert "\n" not in stopping.reason(raised.value)


@pytest.mark.parametrize("full", [False, True])
def test_batches_are_the_same_where_shared_memory_is_full(monkeypatch, full, caplog):
    def refuse(tensor):
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    if full:
        monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)  # of the forked processes
    items = list(load_items(Numbers(10_000), range(8), 2, False))
    assert [number for _, number in items] == list(range(8))
    assert all(torch.equal(tensor, torch.full((10_000,), number)) for tensor, number in items)
    assert ("/dev/shm is full: batches go through pipes" in caplog.text) == full
    assert len(caplog.messages) == full


SMALL = """
import sys
sys.path.insert(0, "tests/unit")
from test_runtime_stopping import Numbers
from experiments.runtime.loading import load_items
print(sum(int(tensor[0]) for tensor, _ in load_items(Numbers(100_000), range(20), 2, False)))
"""


def test_a_small_dev_shm_does_not_hang():
    command = f"mount -t tmpfs -o size=1m tmpfs /dev/shm || exit 99; exec {sys.executable} -c '{SMALL}'"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    if done.returncode in (1, 99) and ("unshare" in done.stderr or "mount" in done.stderr):
        pytest.skip("mounting a small /dev/shm needs more rights")
    assert done.stdout.split() == ["190"]
    assert done.stderr.count("/dev/shm is full: batches go through pipes") == 1


# --- the end of the main process ---------------------------------------------------------------------------------

WORKERS = """
import os, sys, time
sys.path[:0] = ["tests/unit", "."]
{before}
from experiments.runtime import stopping
from experiments.runtime.{module} import {function} as start
if __name__ == "__main__":
    stopping.interruptible(lambda: list(start({arguments})))
"""


class Waiting(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.folder = folder

    def __getitem__(self, index):
        note_and_wait((self.folder, index))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["jobs", "loaders"])
def test_workers_end_with_the_main_process(tmp_path, kind, number):
    given = {
        "jobs": (
            "from stopping_example import note_and_wait",
            "process_pool",
            "run_jobs",
            f"note_and_wait, [({str(tmp_path / 'notes')!r}, i) for i in (0, 1)], 2",
        ),
        "loaders": (
            "from test_runtime_stopping import Waiting",
            "loading",
            "load_items",
            f"Waiting({str(tmp_path / 'notes')!r}), range(2), 2, False",
        ),
    }
    before, module, function, arguments = given[kind]
    script, notes = tmp_path / "script.py", tmp_path / "notes"
    notes.mkdir()
    script.write_text(WORKERS.format(before=before, module=module, function=function, arguments=arguments))
    main = subprocess.Popen(
        [sys.executable, script], cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    for _ in range(600):
        pids = [int(text) for file in notes.iterdir() if (text := file.read_text())]
        if len(pids) == 2:
            break
        time.sleep(0.1)
    assert len(pids) == 2
    if number == signal.SIGINT:
        os.killpg(main.pid, number)  # as a terminal does
    else:
        main.send_signal(number)
    said = main.communicate(timeout=30)[1]
    assert all(gone(pid) for pid in pids)
    if number == signal.SIGKILL:
        assert main.returncode == -number
    else:
        assert main.returncode == 128 + number
        assert said.strip() == f"stopped by {number.name}. {stopping.KEPT}"
