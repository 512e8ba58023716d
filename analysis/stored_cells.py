"""Read finished cells from the stage store: no training, no GPU, no torch.

A cell lies in `<store>/evaluate/<key>/` as `cell.json` (its row) and `scores.parquet` (id, score, is_poison).
`meta.json` of each stage names its inputs' keys, which lead from a cell to its scores, embeddings, plan and
data. A cell that failed leaves `<store>/evaluate/<key>.failed.json`, its row; a later success makes it void.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runtime.digests import faults

if TYPE_CHECKING:
    import pandas as pd

    from attacks import PoisonedPairs

log = logging.getLogger(__name__)

FAILED = ".failed.json"
_LEADS = ("score", "embed", "plan", "data", "train")

# Digests of the settings that are not columns, so that cells with different settings are never averaged:
# column: (stage, settings that have a column of their own, or say only which draw it is).
SETTINGS_DIGESTS = {
    "data_variant": ("data", {"seed", "pairs"}),
    "attack_variant": ("plan", {"seed", "name", "rate", "captions"}),
    "train_variant": ("train", {"seed", "epochs", "warmup_epochs", "threads"}),
    "detector_variant": (
        "score",
        {"seed", "normalise", "k", "scope", "batch_size", "modality", "convention", "backend"},
    ),
}


@dataclass(frozen=True)
class StoredCell:
    """One cell as it lies in the store: its row, its folder, and the keys of the stages that it came from."""

    row: dict[str, Any]
    folder: Path
    keys: Mapping[str, str]

    @cached_property
    def _table(self) -> Any:
        import pyarrow.parquet as pq

        return pq.read_table(self.folder / "scores.parquet")

    @property
    def done(self) -> bool:
        return self.row.get("status", "ok") == "ok" and (self.folder / "scores.parquet").exists()

    @property
    def ids(self) -> np.ndarray:
        """(n,) int64 sample ids."""
        return self._table.column("id").to_numpy()

    @property
    def scores(self) -> np.ndarray | None:
        """(n,) scores, higher = more suspicious; None for a failed cell."""
        return self._table.column("score").to_numpy() if self.done else None

    @property
    def is_poison(self) -> np.ndarray:
        """(n,) bool: the samples that should be found."""
        return self._table.column("is_poison").to_numpy(zero_copy_only=False)


def read_cells(store: str | Path, where: Mapping[str, str] | None = None) -> list[StoredCell]:
    """Every cell of a store, oldest first; `where` keeps those whose row has these values (compared as text).

    Raises:
        FileNotFoundError: if there is no store there.
        ValueError: if `where` names a column that no cell has.
    """
    store = Path(store)
    if not store.is_dir():
        raise FileNotFoundError(f"no store at {store}; run `python run.py` first, or name one with --store")
    metas: dict[Path, dict[str, Any]] = {}

    def meta(folder: Path) -> dict[str, Any]:
        if folder not in metas:
            file = folder / "meta.json"
            metas[folder] = json.loads(file.read_text()) if file.exists() else {}
        return metas[folder]

    cells = []
    for file in sorted((store / "evaluate").glob("*/cell.json")):
        if file.parent.suffix == ".partial":
            continue
        if found := faults(file.parent):
            log.warning("%s is damaged and left out (%s); the next run computes it again", file.parent, found[0])
            continue
        row = json.loads(file.read_text())
        keys: dict[str, str] = {}
        waiting = [file.parent]
        while waiting:
            for name, key in meta(waiting.pop()).get("inputs", {}).items():
                if name in _LEADS and name not in keys:
                    keys[name] = key
                    waiting.append(store / name / key)
        row["created"] = meta(file.parent).get("created", "")
        if "train" in keys:
            row["train_seconds"] = meta(store / "train" / keys["train"]).get("seconds")
        for column, (stage, told) in SETTINGS_DIGESTS.items():
            if stage in keys:
                row[column] = _digest(meta(store / stage / keys[stage]).get("config", {}), told)
        cells.append(StoredCell(row, file.parent, keys))
    for file in sorted((store / "evaluate").glob(f"*{FAILED}")):
        folder = file.with_name(file.name.removesuffix(FAILED))
        if not folder.exists():
            cells.append(StoredCell({"status": "failed", **json.loads(file.read_text())}, folder, {}))
    for column in where or {}:
        if not any(column in cell.row for cell in cells):
            known = sorted({name for cell in cells for name in cell.row})
            raise ValueError(f"no cell has a column {column!r}; there are: {', '.join(known)}")
    cells.sort(key=lambda cell: (str(cell.row.get("created", "")), cell.folder.name))
    return [cell for cell in cells if all(str(cell.row.get(k)) == v for k, v in (where or {}).items())]


def _digest(config: Any, without: set[str]) -> str:
    def strip(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: strip(part) for key, part in value.items() if key not in without}
        return [strip(part) for part in value] if isinstance(value, list) else value

    text = json.dumps(strip(config), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def case(row: Mapping[str, Any]) -> str:
    """What was attacked, and by which model it was seen: `badnets`, or `badnets@clean` for a clean model's
    view.
    """
    return f"{row['attack']}@clean" if row.get("train_on") == "clean" else str(row["attack"])


def cell_frame(cells: Iterable[StoredCell]) -> pd.DataFrame:
    """A row per cell (see `analysis.tables.frame`) with `case` and `place`, its position among the cells."""
    from analysis.tables import frame

    cells = list(cells)
    table = frame([cell.row for cell in cells])
    table["case"] = [case(cell.row) for cell in cells]
    table["place"] = range(len(cells))
    table["normalise"] = [None if value is None else bool(value) for value in table["normalise"].astype(object)]
    return table


@dataclass(frozen=True)
class Scene:
    """All cells of the same embeddings: one attack, one model, one seed."""

    cells: Sequence[StoredCell]
    store: Path

    @property
    def row(self) -> Mapping[str, Any]:
        """What the cells share is in any of their rows."""
        return self.cells[0].row

    @cached_property
    def embeddings(self) -> np.ndarray:
        """(n, d) image embeddings, memory-mapped, in the order of the cells' ids."""
        folder = self.store / "embed" / self.cells[0].keys["embed"]
        image = np.load(folder / "image.npy", mmap_mode="r")
        if not np.array_equal(np.load(folder / "ids.npy"), self.cells[0].ids):
            raise ValueError(f"{folder} holds other samples than {self.cells[0].folder}")
        return image

    @cached_property
    def pairs(self) -> PoisonedPairs:
        """The poisoned pairs, to look at images and captions."""
        from hydra.utils import instantiate

        from attacks import PoisonedPairs, PoisonPlan
        from experiments.data.pairs import open_pairs

        keys = self.cells[0].keys
        plan_folder = self.store / "plan" / keys["plan"]
        config = json.loads((plan_folder / "meta.json").read_text())["config"]
        plan = PoisonPlan.load(plan_folder / "plan.parquet")
        clean = open_pairs(self.store / "data" / keys["data"])
        attack = instantiate(config["attack"]["attack"], _convert_="all")
        if "patch" in keys:
            attack = attack.with_patch(str(self.store / "patch" / keys["patch"] / "patch.png"))
        return PoisonedPairs(clean, plan, attack)


def scenes(cells: Sequence[StoredCell], store: str | Path) -> list[Scene]:
    """Group finished cells by the embeddings that they scored, in order of the first."""
    groups: dict[str, list[StoredCell]] = {}
    for cell in cells:
        if cell.done and "embed" in cell.keys:
            groups.setdefault(cell.keys["embed"] + cell.keys.get("plan", ""), []).append(cell)
    return [Scene(group, Path(store)) for group in groups.values()]
