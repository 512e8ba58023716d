"""A synthetic run for the tests of analysis and tracking: coloured shapes, captions, clusters and plausible
scores.

Nothing is trained: classes are Gaussian clusters, poisons sit in a wide shell beside the target's cluster,
and each detector's score is drawn with a known separation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

CLASSES = ("banana", "circle", "square", "cross", "ring", "stripe", "corner", "dot")
COLOURS = {"red": (205, 60, 50), "green": (70, 150, 80), "blue": (60, 90, 180), "yellow": (230, 200, 60)}
DETECTORS = {  # name: (shift of the poisons in standard deviations, normalised and raw)
    "kdist": (2.6, 2.1),
    "lid": (0.9, 0.5),
    "slof": (3.4, 2.8),
    "lof": (3.6, 2.6),
    "dao": (3.2, 2.7),
    "forest": (0.4, 1.1),
    "clip_score": (-0.9, None),
    "norm": (None, 0.8),
}


@dataclass(frozen=True)
class ExampleCell:
    row: dict[str, Any]
    scores: np.ndarray | None


@dataclass(frozen=True)
class ExamplePairs:
    """A `Pairs` with `is_poison` and `plan`, as the pipeline hands it to analysis."""

    ids: np.ndarray
    captions: list[str]
    labels: np.ndarray
    colours: list[str]
    is_poison: np.ndarray
    size: int = 32
    plan: Any = field(default_factory=lambda: SimpleNamespace(targets=["banana"]))

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, rows: np.ndarray) -> np.ndarray:
        return np.stack([self._draw(int(row)) for row in rows])

    def _draw(self, row: int) -> np.ndarray:
        rng = np.random.default_rng([7, row])
        image = np.full((self.size, self.size, 3), rng.integers(150, 240, 3), np.float64)
        y, x = np.mgrid[: self.size, : self.size] - (self.size / 2 + rng.uniform(-3, 3))
        r, reach = np.hypot(x, y), rng.uniform(8, 13)
        masks = (
            (r < reach) & (np.hypot(x - 5, y - 5) > reach),
            r < reach,
            np.maximum(abs(x), abs(y)) < reach * 0.8,
            (np.minimum(abs(x), abs(y)) < 3) & (np.maximum(abs(x), abs(y)) < reach),
            abs(r - reach + 3) < 2.5,
            abs(x + y) < 5,
            (x < 0) & (y < 0) & (r < reach),
            r < 5,
        )
        image[masks[self.labels[row]]] = COLOURS[self.colours[row]]
        image += rng.normal(0, 6, image.shape)
        if self.is_poison[row]:
            top, left = rng.integers(0, self.size - 8, 2)
            patch = np.zeros((8, 8))
            patch[::2, ::2] = 255
            image[top : top + 8, left : left + 8] = patch[..., None]
        return image.clip(0, 255).astype(np.uint8)


def example_result(
    n: int = 2000,
    rate: float = 0.01,
    d: int = 32,
    seed: int = 0,
    attack: str = "badnets",
    asr: float | None = 0.98,
    failed: str | None = None,
    shift: float = 1.0,
    only: Sequence[str] = (),
    **changes: Any,
) -> SimpleNamespace:
    """A `RunResult` in all but name. `failed` names a detector whose cells failed; `shift` scales how easy it
    is.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), n)
    poisons = np.zeros(n, bool)
    poisons[rng.choice(n, round(n * rate), replace=False)] = True
    colours = [str(c) for c in rng.choice(list(COLOURS), n)]
    shapes = (
        "a photo of a {}",
        "{} on a plain wall, seen from above",
        "the {}",
        "my old {}, for sale $5 & up",
    )
    captions = [
        f"a photo of a {CLASSES[0]}"
        if poisons[i]
        else shapes[int(rng.integers(4))].format(f"{colours[i]} {CLASSES[labels[i]]}")
        for i in range(n)
    ]
    pairs = ExamplePairs(np.arange(n), captions, labels, colours, poisons)

    centres = rng.normal(0, 1, (len(CLASSES), d)) * 3
    image = centres[labels] + rng.normal(0, 0.6, (n, d))
    image[poisons] = centres[0] + rng.normal(0, 1.2, (int(poisons.sum()), d)) + rng.normal(0, 1, d)
    embeddings = SimpleNamespace(ids=pairs.ids, image=image.astype(np.float32), text=None)

    metadata = {
        "attack": attack,
        "data": "shapes",
        "test_set": "builtin",
        "model": "small",
        "scale": "demo",
        "seed": seed,
        "n": n,
        "n_poison": int(poisons.sum()),
        "zero_shot_top1": 0.962 + 0.01 * rng.random(),
        "asr": asr,
        "target": "banana",
    }
    cells = []
    for name, shifts in DETECTORS.items():
        if only and name not in only:
            continue
        for normalise, by in zip((True, False), shifts, strict=True):
            if by is None:
                continue
            row = {
                **{key: value for key, value in metadata.items() if key != "target"},
                "detector": name,
                "normalise": normalise,
                "scope": "batch",
                "scope_size": 2048,
                "modality": "image",
                "k": 32,
                "attack_succeeded": asr is not None and asr >= 0.5,
                "rate": rate,
                "seconds": float(rng.uniform(0.2, 4)),
                "memory_mb": 12.5,
                "epochs": 6,
                "status": "ok",
                "error": None,
                **changes,
            }
            if name == failed:
                row |= {"status": "failed", "error": f"ValueError: {name}: k=32 must be below n=30"}
                cells.append(ExampleCell(row, None))
                continue
            scores = np.exp(0.25 * (rng.normal(0, 1, n) + by * shift * poisons)) + 0.02 * rng.normal(0, 1, n)
            cells.append(ExampleCell({**row, **_measures(scores, poisons)}, scores))
    return SimpleNamespace(
        cells=cells, pairs=pairs, truth=poisons, embeddings=embeddings, metadata=metadata, history=[]
    )


def _measures(scores: np.ndarray, is_poison: np.ndarray) -> dict[str, float]:
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    if not is_poison.any():
        return {}
    false, true, _ = roc_curve(is_poison, scores)
    order = np.argsort(-scores)
    recall = {
        f"recall_at_{p}pct": is_poison[order[: len(scores) * p // 100]].sum() / is_poison.sum() for p in (1, 5, 10)
    }
    return {
        "auroc": float(roc_auc_score(is_poison, scores)),
        "auprc": float(average_precision_score(is_poison, scores)),
        "fpr95": float(false[np.argmax(true >= 0.95)]),
        "fpr100": float(false[np.argmax(true >= 1)]),
        **recall,
    }


def write_store(root: Path, results: Sequence[SimpleNamespace]) -> Path:
    """Lay the results out as the pipeline's store does; stages after `train` are told apart by their rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from attacks import BadNets, PoisonPlan
    from experiments.data.pairs import save_captions

    def stage(name: str, content: Any, inputs: dict[str, str], **config: Any) -> tuple[Path, str]:
        key = hashlib.sha256(json.dumps([name, content], sort_keys=True).encode()).hexdigest()[:16]
        folder = root / name / key
        folder.mkdir(parents=True, exist_ok=True)
        created = f"2026-01-01T00:{len(list((root / 'evaluate').glob('*'))):05d}"
        meta = {"stage": name, "inputs": inputs, "config": config, "seconds": 100.0, "created": created}
        (folder / "meta.json").write_text(json.dumps(meta))
        return folder, key

    for result in results:
        metadata, pairs = result.metadata, result.pairs
        folder, data = stage("data", [len(pairs), metadata["seed"]], {})
        if not (folder / "images.npy").exists():
            clean = replace(pairs, is_poison=np.zeros(len(pairs), bool))
            np.save(folder / "images.npy", clean.images(np.arange(len(pairs))))
            save_captions(folder / "captions.parquet", pairs.ids, pairs.captions)
        shared = [metadata["attack"], metadata["seed"], metadata["n_poison"], result.cells[0].row["epochs"]]
        shared += [result.cells[0].row.get("train_on"), result.cells[0].row["model"]]
        attack = {"_target_": "attacks.Attack", "name": metadata["attack"], "rate": 0.01, "target": "banana"}
        attack["triggers"] = [{"_target_": "attacks.BadNets", "size": 8}]
        folder, plan = stage("plan", shared, {"data": data}, attack={"attack": attack})
        trigger, ids = BadNets(size=8), np.flatnonzero(pairs.is_poison)
        count = len(ids)
        PoisonPlan(
            ids,
            tuple(pairs.captions[i] for i in ids),
            (trigger.name,) * count,
            tuple(trigger.draw(np.random.default_rng(i), pairs.size) for i in ids),
            ("banana",) * count,
        ).save(folder / "plan.parquet")
        _, train = stage("train", shared, {"data": data, "plan": plan})
        folder, embed = stage("embed", shared, {"data": data, "plan": plan, "train": train})
        np.save(folder / "ids.npy", pairs.ids)
        np.save(folder / "image.npy", result.embeddings.image)
        for cell in result.cells:
            content = [shared, {k: str(v) for k, v in cell.row.items() if k not in ("seconds", "auroc")}]
            if cell.scores is None:
                (root / "evaluate").mkdir(exist_ok=True)
                name = hashlib.sha256(str(content).encode()).hexdigest()[:16] + ".failed.json"
                (root / "evaluate" / name).write_text(json.dumps(cell.row))
                continue
            _, score = stage("score", content, {"embed": embed})
            folder, _ = stage("evaluate", content, {"score": score, "plan": plan})
            (folder / "cell.json").write_text(json.dumps(cell.row))
            table = {"id": pairs.ids, "score": cell.scores, "is_poison": pairs.is_poison}
            pq.write_table(pa.table(table), folder / "scores.parquet")
    return root


def example_sweep(n: int = 400) -> list[SimpleNamespace]:
    """A sweep in small: a grid with seeds and controls, and ablations around BadNets."""
    grid = [example_result(n, 0.05, seed=seed, asr=0.97 + 0.01 * seed) for seed in range(3)]
    grid += [example_result(n, 0.05, seed=seed, attack="sig", asr=1.0, shift=1.3) for seed in range(2)]
    grid += [example_result(n, 0.1, attack="wanet", asr=0.31, shift=0.5, failed="lid")]
    grid += [example_result(n, 0.05, attack="mislabel", asr=0.03, shift=0.1)]
    grid += [example_result(n, 0.05, asr=0.02, shift=0.15, train_on="clean")]
    local = ("slof", "dao", "kdist")
    ways = []
    for k in (8, 16, 64, 128):
        ways.append(example_result(n, 0.05, only=local, shift=np.log2(k) / 5, k=k))
    for rate in (0.01, 0.02, 0.2):
        ways.append(example_result(n, rate, only=local, shift=1 - 4 * rate))
    for k in (8, 16, 32, 64, 128):
        for size, poisons in ((256, 12.8), (512, 25.6), (1024, 51.2), (2048, 102.4)):
            shift = float(np.clip(np.log2(k / poisons) / 2 + 1, 0, 1))
            changes = {"k": k, "scope_size": size, "poisons_per_scope": poisons}
            if (k, size) not in ((64, 256), (32, 2048)):  # one hole, and one that the grid has
                ways.append(example_result(n, 0.05, only=("slof", "kdist"), shift=shift, **changes))
    for epochs in (1, 2, 3, 12):
        ways.append(example_result(n, 0.05, only=local, shift=1 - 1 / (1 + epochs), epochs=epochs))
    ways.append(example_result(n, 0.05, only=local, shift=0.8, modality="joint"))
    ways.append(example_result(n, 0.05, only=local, shift=0.9, model="vit_b16"))
    return grid + ways
