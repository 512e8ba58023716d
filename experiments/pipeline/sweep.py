"""What a sweep leaves behind, whichever launcher runs its jobs (`hydra.callbacks.sweep` in conf/config.yaml).

    <sweep>/<job>/job.json   how a job ended: its overrides, its error if it failed, its cells done, reused, failed
    <sweep>/results.csv      the rows of all jobs; a failed job is a row with its error

A failed job does not end the sweep. The sweep's last line counts jobs and cells, and its exit status is 1 if any
of them failed.
"""

from __future__ import annotations

import atexit
import csv
import json
import logging
import os
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from experiments.pipeline.sweep_table import sweep_table
from experiments.runtime import distributed, refusals
from experiments.runtime.safe_text import csv_cell

log = logging.getLogger(__name__)

JOB, RESULTS, OVERRIDES = "job.json", "results.csv", ".hydra/overrides.yaml"
KILLED = "ended without a result (killed, or still running)"


@dataclass(frozen=True)
class CellCounts:
    """Cells of a job: computed, taken from the store, failed."""

    done: int = 0
    reused: int = 0
    failed: int = 0

    def __add__(self, other: CellCounts) -> CellCounts:
        return CellCounts(self.done + other.done, self.reused + other.reused, self.failed + other.failed)


class Sweep(Callback):
    """Records each job where it runs, and sums them up where the sweep was started."""

    def __init__(self) -> None:
        self._folder: Path | None = None  # of the sweep, in the process that started it
        self._begin = self._job_begin = time.time()

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not distributed.is_main():
            return
        self._folder, self._begin = Path(config.hydra.sweep.dir), time.time()
        for mark in (JOB, OVERRIDES):  # of an earlier sweep into this folder
            for file in self._folder.glob(f"*/{mark}"):
                file.unlink()
        # A launcher raises for a job that was killed, and then no callback tells the sweep's end.
        atexit.register(self._conclude)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        self._job_begin = time.time()
        _join_tasks()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        failed = job_return.status == JobStatus.FAILED
        value = job_return._return_value
        if failed:
            # Completed, for the sweeper would raise the first error and leave the others untold.
            job_return.return_value, job_return.status = None, JobStatus.COMPLETED
        if not distributed.is_main():
            return
        record: dict[str, Any] = {
            "overrides": list(job_return.overrides or ()),
            "attack": OmegaConf.select(config, "attack.name"),
            "seed": config.seed,
            "status": "failed" if failed else "ok",
            "error": f"{type(value).__name__}: {value}" if failed else "",
            "seconds": round(time.time() - self._job_begin, 1),
            "cells": asdict(value if isinstance(value, CellCounts) else CellCounts()),
        }
        if failed:
            record["traceback"] = traceback.format_exception(value)
            refusals.report(f"job {' '.join(record['overrides'])}", value)
        folder = Path(config.hydra.runtime.output_dir)
        partial = folder / (JOB + ".partial")
        partial.write_text(json.dumps(record, indent=1))
        partial.rename(folder / JOB)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self._folder is None:
            return
        try:
            whole = self._conclude()
        except Exception:  # which Hydra would turn into a warning
            log.exception("the sweep's results could not be joined")
            whole = False
        if not whole:
            sys.exit(1)

    def _conclude(self) -> bool:
        """Join the results and say how the sweep ended; whether nothing failed."""
        folder, self._folder = self._folder, None
        if folder is None:
            return True
        atexit.unregister(self._conclude)
        jobs = records(folder)
        if not jobs:
            return False
        rows = join(folder, jobs)
        if (table := sweep_table(jobs, rows)) is not None:
            from rich.console import Console

            Console().print(table)
        cells = sum((CellCounts(**job["cells"]) for job in jobs.values()), CellCounts())
        broken = sum(job["status"] != "ok" for job in jobs.values())
        log.info(
            "sweep: %d jobs, %d failed; %d cells done, %d reused, %d failed; %.0f s; %s",
            len(jobs),
            broken,
            cells.done,
            cells.reused,
            cells.failed,
            time.time() - self._begin,
            folder / RESULTS,
        )
        return not (broken or cells.failed)


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Folder name of each job -> how it ended."""
    found = {}
    for job in sorted((path.parent.parent for path in folder.glob(f"*/{OVERRIDES}")), key=_number):
        if (job / JOB).exists():
            found[job.name] = json.loads((job / JOB).read_text())
        else:
            overrides = OmegaConf.to_container(OmegaConf.load(job / OVERRIDES))
            found[job.name] = {
                "overrides": overrides,
                "status": "failed",
                "error": KILLED,
                "cells": asdict(CellCounts()),
            }
    return found


def join(folder: Path, jobs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Write the sweep's results.csv: each job's rows, after the job's name; a failed job is one row. The rows."""
    rows: list[dict[str, Any]] = []
    for name, job in jobs.items():
        if job["status"] == "ok" and not (folder / name / RESULTS).exists():  # a task without a table
            rows.append({"job": name, "status": "ok"})
        elif job["status"] == "ok":
            with open(folder / name / RESULTS, newline="", encoding="utf-8") as file:
                rows += [{"job": name, **row} for row in csv.DictReader(file)]
        else:
            known: dict[str, Any] = {key: job[key] for key in ("attack", "seed", "status", "error") if key in job}
            rows.append({"job": name, "overrides": " ".join(job["overrides"]), **known})
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(folder / RESULTS, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({column: csv_cell(value) for column, value in row.items()} for row in rows)
    return rows


def _number(job: Path) -> tuple[int, str]:
    number = job.name.partition("-")[0]
    return (int(number) if number.isdigit() else sys.maxsize), job.name


def _join_tasks() -> None:
    """Give the tasks of one submitit job the environment that torchrun gives its processes."""
    if "SUBMITIT_EXECUTOR" not in os.environ or "RANK" in os.environ:
        return
    import submitit

    if submitit.JobEnvironment().num_tasks > 1:
        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
