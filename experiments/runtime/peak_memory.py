"""The peak memory of a piece of work, above what was in use when it began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # see proc(5), clear_refs
MEGABYTE = 1e6


@dataclass
class Peak:
    """megabytes: of the process and of the GPU together, once the work has ended; None where it is not known."""

    megabytes: float | None = None


@contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measure the work inside: resident memory as Linux counts it (None elsewhere), and on `device` torch's."""
    measured = Peak()
    cuda = device.startswith("cuda")
    if cuda:
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    try:
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        before: float | None = _resident("VmRSS")
    except OSError:
        before = None
    yield measured
    if before is not None:
        measured.megabytes = max(0.0, _resident("VmHWM") - before)
        if cuda:
            measured.megabytes += (torch.cuda.max_memory_allocated(device) - held) / MEGABYTE


def _resident(name: str) -> float:
    """A line of /proc/self/status, in megabytes."""
    lines = (_PROCESS / "status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / MEGABYTE
