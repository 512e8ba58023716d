"""The values that stages pass on, and how those that are stored are saved and loaded."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks import Attack, PoisonedPairs, PoisonPlan
from detect import Embeddings, Neighbours
from experiments.data.pairs import ArrayPairs, TestSet, open_pairs, open_test
from experiments.runtime import distributed

if TYPE_CHECKING:
    from torch import Tensor

    from experiments.clip.inversion import InvertedTrigger
    from experiments.clip.model import TrainedModel
    from experiments.clip.warp_inversion import InvertedWarp
    from experiments.data.file_pairs import FilePairs
    from experiments.data.jpeg_batches import JPEGDecoder
    from experiments.data.shard_pairs import ShardPairs
    from experiments.runtime.store import Entry


PATCH_FILE = "patch.png"


@dataclass(frozen=True)
class DataSet:
    """What a data source has built in `path`."""

    path: Path

    def pairs(self, decoder: JPEGDecoder | None = None) -> ArrayPairs | ShardPairs | FilePairs:
        return open_pairs(self.path, decoder)


@dataclass(frozen=True)
class Poisoning:
    """An attack, and its plan for one data set."""

    attack: Attack
    plan: PoisonPlan

    def of(self, clean: Any) -> PoisonedPairs:
        return PoisonedPairs(clean, self.plan, self.attack)


@dataclass(frozen=True)
class Trained:
    """A model's folder."""

    path: Path

    def model(self, device: str) -> TrainedModel:
        from experiments.clip import load_model

        return load_model(self.path, device)

    @property
    def losses(self) -> np.ndarray:
        """(n, epochs) loss of each sample in each epoch; ValueError for a model that was not trained here."""
        if not (self.path / "losses.npy").exists():
            raise ValueError("training losses are needed, but the model was not trained here (model.finetune=true)")
        return np.load(self.path / "losses.npy")

    @property
    def history(self) -> list[dict[str, Any]]:
        """Measures of each epoch."""
        file = self.path / "history.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@dataclass(frozen=True)
class Scored:
    """values: (n,).  seconds, memory_mb: what computing them took."""

    values: np.ndarray
    seconds: float
    memory_mb: float | None


# --- measures ---------------------------------------------------------------------------------------------------


def with_targets(test: TestSet, targets: Sequence[str]) -> TestSet:
    """Add the targets to the classes of the zero-shot classifier; a target may have no images."""
    for word in targets:
        test = test.with_class(word)
    return test


def measure_model(model: Any, test: TestSet, poisoning: Poisoning | None, clean: Any) -> dict[str, Any]:
    """Zero-shot accuracy and, for a poisoning, attack success rate."""
    from experiments.clip.zero_shot import evaluate_zero_shot

    return evaluate_zero_shot(model, test, None if poisoning is None else poisoning.of(clean))


def seen_by(model: TrainedModel, pairs: PoisonedPairs, rows: np.ndarray) -> Tensor:
    """Images of the rows (b,), as the model sees them: (b, 3, s, s) in [0, 1]."""
    import torch

    return model.pixels(torch.from_numpy(pairs.images(rows)))


def checked_scores(values: np.ndarray, n: int, detector: str) -> np.ndarray:
    """The values; RuntimeError unless they are n finite numbers."""
    if values.shape != (n,) or not np.isfinite(values).all():
        raise RuntimeError(f"{detector} gave {values.shape} scores, or some that are not finite")
    return values


# --- how they are stored ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """load: reads the value of a finished entry.
    save: writes it into the folder, and may return metadata. By default it does nothing, for computations that
        write their files themselves.
    """

    load: Callable[[Entry], Any]
    save: Callable[[Any, Path], Any] = lambda value, folder: None


def _save_patch(patch: np.ndarray, folder: Path) -> None:
    from PIL import Image

    Image.fromarray(patch).save(folder / PATCH_FILE)


def _save_inverted(trigger: InvertedTrigger | InvertedWarp, folder: Path) -> None:
    if distributed.is_main():
        trigger.save(folder)


def _load_inverted(entry: Entry) -> InvertedTrigger:
    from experiments.clip.inversion import InvertedTrigger

    return InvertedTrigger.load(entry.path)


def _load_warped(entry: Entry) -> InvertedWarp:
    from experiments.clip.warp_inversion import InvertedWarp

    return InvertedWarp.load(entry.path)


def _save_measures(measures: dict[str, Any], folder: Path) -> None:
    (folder / "measures.json").write_text(json.dumps(measures))


def _save_defence(row: dict[str, Any], folder: Path) -> None:
    (folder / "row.json").write_text(json.dumps(row, indent=1))


def _save_embeddings(embeddings: Embeddings, folder: Path) -> None:
    from experiments.clip.embed import save

    if distributed.is_main():
        save(embeddings, folder)


def _load_embeddings(entry: Entry) -> Embeddings:
    from experiments.clip.embed import load, refuse_collapsed

    embeddings = load(entry.path)
    refuse_collapsed(embeddings)
    return embeddings


def _array(name: str) -> Form:
    """One array, in the file `name`, which rank 0 writes."""

    def save(values: np.ndarray, folder: Path) -> None:
        if distributed.is_main():
            np.save(folder / name, values)

    return Form(lambda entry: np.load(entry.path / name), save)


@functools.lru_cache(maxsize=2)  # tables are large, and detectors that share one come one after the other
def _read_neighbours(path: Path) -> Neighbours:
    return Neighbours.load(path)


def _save_scores(scored: tuple[np.ndarray, float | None], folder: Path) -> dict[str, Any]:
    np.save(folder / "scores.npy", scored[0])
    return {"memory_mb": scored[1]}


def _load_scores(entry: Entry) -> Scored:
    return Scored(np.load(entry.path / "scores.npy"), entry.seconds, entry.metadata.get("memory_mb"))


DATA = Form(lambda entry: DataSet(entry.path))
TEST_SET = Form(lambda entry: open_test(entry.path))
PLAN = Form(
    lambda entry: PoisonPlan.load(entry.path / "plan.parquet"),
    lambda plan, folder: plan.save(folder / "plan.parquet"),
)
MODEL = Form(lambda entry: Trained(entry.path))
MEASURES = Form(lambda entry: json.loads((entry.path / "measures.json").read_text()), _save_measures)
DEFENCE = Form(lambda entry: json.loads((entry.path / "row.json").read_text()), _save_defence)
INVERTED = Form(_load_inverted, _save_inverted)
WARPED = Form(_load_warped, _save_inverted)
EMBEDDINGS = Form(_load_embeddings, _save_embeddings)
PATCH = Form(lambda entry: str(entry.path / PATCH_FILE), _save_patch)
DRIFT = _array("drift.npy")
AGREEMENT = _array("agreement.npy")
NEIGHBOURS = Form(lambda entry: _read_neighbours(entry.path), lambda table, folder: table.save(folder))
SCORES = Form(_load_scores, _save_scores)
CELL = Form(lambda entry: json.loads((entry.path / "cell.json").read_text()))
