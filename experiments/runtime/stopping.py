"""How a run ends early: a full disk, a dead worker or a signal ends it with one line and an exit status."""

from __future__ import annotations

import errno
import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from experiments.runtime import distributed

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE = 1 << 20
KEPT = "Finished stages are kept, and what can be resumed is; the same command goes on from there"


class Stopped(RuntimeError):
    """The run cannot go on; its text is one line that says why and what to do."""


class DiskFull(Stopped):
    """No room for a result."""


class WorkerDied(Stopped):
    """A process that works for this one has ended without a result."""

    def __init__(self, cause: str) -> None:
        super().__init__(
            f"a worker process died: {cause}. Memory may be short: give runtime.workers=0 or a smaller number, or "
            f"in a container more memory, of which /dev/shm is a part (docker run --shm-size=8g). {KEPT}"
        )


class Terminated(KeyboardInterrupt):
    """SIGTERM; like Ctrl-C, it passes every `except Exception`."""


def reason(error: BaseException) -> str | None:
    """The one line that ends the run, if `error` is one that no other detector or stage can do without."""
    text = str(error)
    if isinstance(error, Stopped):
        return text
    if died := dead_loader(error):
        return str(died)
    if isinstance(error, OSError) and error.errno in _FULL:
        place = f": {error.filename}" if error.filename else ""
        return f"the disk is full{place} ({os.strerror(error.errno or 0)}). {KEPT}, once there is room"
    return None


def dead_loader(error: BaseException) -> WorkerDied | None:
    """What torch says, at any time, of a process that loaded batches and is gone."""
    text = str(error)
    if isinstance(error, RuntimeError) and text.startswith("DataLoader worker (pid"):
        return WorkerDied(text.partition(". ")[0].rstrip("."))
    return None


def no_workers(error: OSError) -> WorkerDied | None:
    """What the operating system says where no process can be started because shared memory is full."""
    return WorkerDied("it could not start, for /dev/shm is full") if error.errno in _FULL else None


def check_room(error: Exception, folder: Path, work: str) -> None:
    """Raise DiskFull if `error`, which has ended `work` on files in `folder`, comes of a full disk.

    Not every library passes the operating system's error on: then a small file is tried.
    """
    said = any(part in str(error) for part in ("No space left on device", "Disk quota exceeded"))
    if isinstance(error, Stopped):
        return
    if said or (isinstance(error, OSError) and error.errno in _FULL) or (_unclear(error) and _is_full(folder)):
        raise DiskFull(
            f"the disk of {folder.parent.parent} is full ({work}). {KEPT}, once there is room"
        ) from error


def _unclear(error: Exception) -> bool:
    return isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno is None)


def _is_full(folder: Path) -> bool:
    probe = folder / f".probe-{os.getpid()}"
    try:
        with open(probe, "wb") as stream:
            stream.write(bytes(_PROBE))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        return error.errno in _FULL
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return False


def in_one_line(task: Callable[..., Result]) -> Callable[..., Result]:
    """Hydra's task, so that it ends with the one line of `reason` where there is one.

    A job of a sweep raises instead, and the others go on. Where the job runs in a process of its own (of a
    launcher or of torchrun), it ends when the one that started it does.
    """

    @functools.wraps(task)
    def guarded(config: Any) -> Result:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        if multiprocessing.current_process().name != "MainProcess" or "TORCHELASTIC_RUN_ID" in os.environ:
            end_with_parent(os.getppid())
        try:
            return task(config)
        except Exception as error:
            line = reason(error)
            if line is None or HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            log.error("%s", line)
            raise SystemExit(1) from None

    return guarded


def interruptible(main: Callable[[], Any]) -> None:
    """Run `main()`; SIGTERM and Ctrl-C end it with one line and the usual exit status, 143 and 130."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except KeyboardInterrupt as stop:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        if distributed.is_main():
            print(f"\nstopped by {number.name}. {KEPT}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number) from None


def _terminate(number: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one does not wait for anything
    raise Terminated


def end_with_parent(parent: int) -> None:
    """End this process soon after `parent`, its parent, has ended, however that ended."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end with parent").start()


def as_worker(parent: int) -> None:
    """What a worker process begins with: it ends with its parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent)
