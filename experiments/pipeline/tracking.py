"""Weights & Biases: the only module that imports it.

One W&B run per cell group, that is one attack and one seed with all its detectors. `group` is the attack, the
configuration holds `attack_name`, `detectors` and `seed` at its top, and the summary holds `auroc/<detector>`
(normalised embeddings), `auroc/<detector>_raw`, `zero_shot_top1` and `asr`, so that the W&B page groups and
plots by any of them. With `cells: true` every cell becomes a small run of its own as well, to group by
detector.

Everything is written into the run's folder. Offline runs (the default) need neither network nor account;
`wandb sync <folder>/wandb/offline-run-*` uploads them later.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from experiments.pipeline.config import run_name
from experiments.runtime import distributed, refusals

if TYPE_CHECKING:
    from experiments.pipeline.evaluation import Cell, RunResult

log = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
MEASURES = ("auroc", "auprc", "fpr95", "fpr100", "recall_at_1pct")
OF_MODEL = ("zero_shot_top1", "asr", "hit_at_1", "hit_at_5", "hit_at_10")


@dataclass
class Tracker:
    """Where runs are tracked: `logger=online|offline|disabled`.

    Use it as a context manager around one run: `with tracker.start(folder, config): ...`. All methods do
    nothing when disabled, and in every process but the first of a distributed run.
    """

    mode: str = "offline"
    project: str = "lookout"
    entity: str | None = None
    tags: Sequence[str] = ()
    cells: bool = False
    flush_seconds: float = 5.0  # seconds of a killed run that may be lost
    _run: Any = field(default=None, init=False, repr=False)
    _epochs: set[int] = field(default_factory=set, init=False, repr=False)
    _folder: Path = field(default=Path("."), init=False, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"logger.mode must be one of {', '.join(MODES)}, not {self.mode!r}")

    def start(self, folder: str | Path, config: Mapping[str, Any]) -> Tracker:
        """Open the run for one composed configuration (plain dictionaries), before any slow work."""
        self._folder = Path(folder)
        attack, task = _name(config.get("attack")), _name(config.get("task")) or "detect"
        self._run = self._open(
            name=f"{run_name(task, attack, _name(config.get('data')))}-seed{config.get('seed')}",
            group=attack,
            job_type="detect",
            config={**config, "attack_name": attack, "detectors": sorted(config.get("detector") or ())},
            tags=_tags(config, self.tags),
        )
        self._epochs = set()
        if self._run is not None:
            self._run.define_metric("epoch")
            self._run.define_metric("train/*", step_metric="epoch")
        return self

    def _open(self, **about: Any) -> Any:
        if self.mode == "disabled" or not distributed.is_main():
            return None
        # Its crash reports go to a host that a closed network cannot resolve, and the exit then waits for it.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        _cache_somewhere(self._folder)
        import wandb

        logging.getLogger("wandb").propagate = False  # it keeps a debug.log of its own
        self._folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=30,
            x_disable_stats=self.mode == "offline",
            x_transaction_log_flush_interval=self.flush_seconds,
        )
        try:
            return wandb.init(
                mode=self.mode,
                project=self.project,
                entity=self.entity,
                dir=str(self._folder),
                reinit="create_new",
                settings=settings,
                **about,
            )
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            raise RuntimeError(
                f"logger={self.mode}: W&B could not start a run ({error}). "
                "Log in with `wandb login`, or use logger=offline or logger=disabled."
            ) from error

    def log(self, measures: Mapping[str, Any]) -> None:
        """One epoch's measures, `epoch` among them; an epoch that was logged before is not logged again."""
        if self._run is None or measures["epoch"] in self._epochs:
            return
        self._epochs.add(measures["epoch"])
        named = {f"train/{name}": value for name, value in measures.items() if name != "epoch"}
        self._run.log({"epoch": measures["epoch"], **named})

    def record(self, result: RunResult, folder: str | Path | None = None) -> None:
        """The results: summary measures, a table of cells, and the figures (PNG) that lie in `folder`.

        Training that came from the store logged no epochs in this run; `result.history`, if there is one,
        fills them in.
        """
        if self._run is None:
            return
        import wandb

        for measures in getattr(result, "history", None) or ():
            self.log(measures)
        self._run.summary.update(summary(result))
        self._run.log({"cells": _table(result.cells)})
        figures = sorted(Path(folder or self._folder).glob("*.png"))
        if figures:
            self._run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})
        if self.cells:
            for cell in result.cells:
                self._record_cell(cell)

    def _record_cell(self, cell: Cell) -> None:
        row = {name: value for name, value in cell.row.items() if not _missing(value)}
        results = {*MEASURES, *OF_MODEL, "seconds", "memory_mb", "status", "error"}
        run = self._open(
            name=f"{row['attack']}-{_label(row)}-seed{row.get('seed')}",
            group=str(row["attack"]),
            job_type="cell",
            config={name: value for name, value in row.items() if name not in results},
            tags=[str(row["attack"]), str(row["detector"]), f"seed {row.get('seed')}"],
        )
        run.summary.update({name: value for name, value in row.items() if name in results})
        run.finish()

    def finish(self, failed: bool = False, keep: bool = True) -> None:
        """Close the run; a failed one is marked so. keep: whether its folder will stay, to be uploaded from."""
        if self._run is None:
            return
        place = self._run.dir
        self._run.finish(exit_code=1 if failed else 0)
        self._run = None
        if self.mode == "offline" and keep:
            log.info("tracking   offline run; upload it with: wandb sync %s", Path(place).parent)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish(failed=kind is not None, keep=error is None or refusals.status(error) != 2)


def _cache_somewhere(folder: Path) -> None:
    """Let W&B's own process write its log into `folder` where the home is not writable; else it prints it."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    logs = Path(os.environ.get("WANDB_CACHE_DIR") or Path(home) / "wandb", "logs")
    try:
        logs.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=logs):
            return
    except OSError:
        os.environ["WANDB_CACHE_DIR"] = str(folder.resolve() / "wandb" / "cache")


def summary(result: RunResult) -> dict[str, Any]:
    """Summary measures: `auroc/<detector>`, `auroc/<detector>_raw`, other measures likewise, and the run's
    metadata.
    """
    values: dict[str, Any] = {}
    for name in (*OF_MODEL, "n", "n_poison", "attack_succeeded"):
        if not _missing(result.metadata.get(name)):
            values[name] = result.metadata[name]
    for cell in result.cells:
        for measure in (*MEASURES, "seconds", "memory_mb"):
            if not _missing(cell.row.get(measure)):
                values[f"{measure}/{_label(cell.row)}"] = cell.row[measure]
    values["cells_failed"] = sum(cell.row.get("status", "ok") != "ok" for cell in result.cells)
    return values


def _label(row: Mapping[str, Any]) -> str:
    """`slof` on normalised embeddings (or where the norm makes no difference), `slof_raw` on raw ones."""
    return f"{row['detector']}_raw" if row.get("normalise") is False else str(row["detector"])


def _table(cells: Sequence[Cell]) -> Any:
    import wandb

    columns = list(dict.fromkeys(name for cell in cells for name in cell.row))
    rows = [[None if _missing(cell.row.get(name)) else cell.row[name] for name in columns] for cell in cells]
    return wandb.Table(columns=columns, data=rows, allow_mixed_types=True)


def _tags(config: Mapping[str, Any], more: Sequence[str]) -> list[str]:
    tags = [_name(config.get(group)) for group in ("attack", "data", "model", "scale")]
    tags += [f"seed {config.get('seed')}", *(config.get("detector") or ()), *more]
    return list(dict.fromkeys(tag[:64] for tag in tags if tag))  # W&B refuses empty and longer ones


def _name(group: Any) -> str:
    """A configuration group's name: its `name`, else the class that it builds."""
    if not isinstance(group, Mapping):
        return str(group or "")
    return str(group.get("name") or str(group.get("_target_", "")).rpartition(".")[2].lower())


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
