"""Small disks for the tests of what happens when they are full or cannot be written; Triton's interpreter."""

import os
import subprocess
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():  # no GPU: kernels are interpreted, which Triton decides when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def mounted(tmp_path):
    """mounted(size) -> a folder that is a disk of its own, of that size ("1m"); skips where that is forbidden."""
    disks = []

    def mount(size):
        disk = tmp_path / f"disk{len(disks)}"
        disk.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small disk needs more rights")
        disks.append(disk)
        return disk

    yield mount
    for disk in disks:
        subprocess.run(["umount", "--lazy", disk], check=True)
