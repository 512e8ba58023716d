"""Peak memory of a piece of work."""

import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.runtime import peak_memory as memory
from experiments.runtime.peak_memory import peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="Linux counts it")
def test_what_was_held_meanwhile_counts_and_what_was_held_before_does_not():
    held = np.ones(20_000_000, dtype=np.uint8)
    with peak_memory() as nothing:
        held[0] = 2
    with peak_memory() as peak:
        work = np.ones(80_000_000, dtype=np.uint8)
        del work
    assert nothing.megabytes is not None
    assert nothing.megabytes < 10
    assert peak.megabytes == pytest.approx(80, abs=10)


def test_elsewhere_it_is_not_known(monkeypatch):
    monkeypatch.setattr(memory, "_PROCESS", Path("/nowhere"))
    with peak_memory() as peak:
        pass
    assert peak.megabytes is None
