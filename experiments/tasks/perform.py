"""What the tasks beside the main job print and leave in the run's folder."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.runtime.safe_text import csv_cell

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from experiments.pipeline.runner import Runner
    from experiments.pipeline.sweep import CellCounts

log = logging.getLogger(__name__)


def prepare(config: DictConfig, runner: Runner) -> Any:
    """The task that `config` names, checked on `runner` before any work."""
    from hydra.utils import instantiate

    task = instantiate(config)
    task.check(runner.experiment)
    return task


def perform(config: DictConfig, runner: Runner, folder: Path) -> CellCounts:
    """Check and run the task that `config` names on `runner`."""
    return carry_out(prepare(config, runner), runner, folder)


def carry_out(task: Any, runner: Runner, folder: Path) -> CellCounts:
    """Run a task that was checked; its files go to `folder`, a summary to the screen."""
    from experiments.pipeline.sweep import CellCounts
    from experiments.runtime import distributed

    result = task.run(runner)
    if not distributed.is_main():
        return CellCounts()
    from rich.console import Console

    text, rows = _write(result, runner.experiment.source, folder, getattr(task, "gallery", 0))
    Console(soft_wrap=True).print(text, markup=False, highlight=False)
    _write_rows(rows, folder / "results.csv")
    log.info("results in %s; %s", folder, runner.store)
    scan = getattr(result, "scan", result)
    return CellCounts(done=1, failed=len(getattr(scan, "failed", ())))


def _write(result: Any, source: Any, folder: Path, gallery: int) -> tuple[str, Sequence[Mapping[str, Any]]]:
    """Write a result's files; what to print, and the rows of results.csv."""
    from analysis.pages import suspects as suspects_page
    from experiments.tasks.clean import CleanResult
    from experiments.tasks.next_steps import next_steps
    from experiments.tasks.scan_result import ScanResult, write_scores, write_sources

    if isinstance(result, ScanResult):
        write_scores(result, folder)
        write_sources(result.samples, folder)
        suspects_page.write(result, folder / "suspects.html", gallery)
        text = suspects_page.summary(result)
        text += "\n".join(next_steps(result.metadata, source, folder, _overrides())) + "\n"
        (folder / "summary.md").write_text(text, encoding="utf-8")
        return text, suspects_page.result_rows(result)
    if isinstance(result, CleanResult):
        write_sources(result.scan.samples, folder)
        suspects_page.write(result.scan, folder / "suspects.html", gallery, result.counts)
    return result.write(folder)


def _overrides() -> list[str] | None:
    """The words of the command line that set something; None if Hydra did not start this run."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else None


def _write_rows(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows({column: csv_cell(value) for column, value in row.items()} for row in rows)
