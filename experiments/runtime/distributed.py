"""The few collective operations the stages need; each is a no-op in a single process.

Under `torchrun` every process runs the whole pipeline: stages that train or embed work together, all others
are computed by rank 0 while the rest wait.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

_RANK_FOLDER = "lookout-rank-"  # in the temporary directory, then the process's number


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    return rank() == 0


def device(name: str) -> str:
    """The torch device of this process: `name`, or for "auto" its GPU where there is one."""
    if name != "auto":
        return name
    import torch

    return f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"


def start(device: str, threads: int | None = None) -> None:
    """Set the number of threads, and join torchrun's process group, which the environment describes (NCCL on GPUs,
    Gloo on CPUs)."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if world_size() == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        # Ranks wait at a barrier while rank 0 builds a stage alone, which may take hours.
        dist.init_process_group(backend, timeout=timedelta(days=2))
        atexit.register(dist.destroy_process_group)


def hydra_overrides() -> list[str]:
    """Overrides that keep Hydra from writing folders and logs on ranks above 0."""
    if is_main():
        return []
    _remove_left_behind()
    place = tempfile.mkdtemp(prefix=f"{_RANK_FOLDER}{os.getpid()}-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    logging.disable(logging.WARNING)
    return [
        f"hydra.run.dir={place}",
        f"hydra.sweep.dir={place}",
        "hydra.output_subdir=null",
        "hydra/job_logging=disabled",
        "hydra/hydra_logging=disabled",
    ]


def _remove_left_behind() -> None:
    """The folders of ranks that were killed; those of living processes stay, and those of other users."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_RANK_FOLDER}*"):
        number = folder.name.removeprefix(_RANK_FOLDER).partition("-")[0]
        if not number.isdecimal():
            continue
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except PermissionError:  # a living process of another user
            continue


def barrier() -> None:
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier()


def broadcast(value: Any) -> Any:
    """Rank 0's `value`, on every rank. Only plain Python values of our own processes travel."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_sum(tensor: Any) -> Any:
    """Sum of `tensor` over the processes, in place; used to join rows that exactly one rank has filled."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor
