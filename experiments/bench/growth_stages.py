"""The stages that `experiments.bench.growth` measures, and the simulated samples that they work on."""

from __future__ import annotations

import functools
import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.bench.report import clustered
from experiments.runtime.peak_memory import peak_memory

if TYPE_CHECKING:
    from attacks import Attack, PoisonedPairs, PoisonPlan
    from detect import Embeddings, Neighbours
    from experiments.clip import TrainedModel

WIDTH, K, BATCH, SIZE = 512, 64, 2048, 32
STEPS = 10  # of training
STORED = 200  # samples for each entry of the store: 50 entries to 5,000
SUBJECTS = ("banana", "school bus", "red panda", "gondola", "sailboat", "orange", "lighthouse", "violin")


@dataclass(frozen=True)
class Row:
    """megabytes: peak above what was held when the stage began, NaN where it is not known."""

    stage: str
    rows: int
    seconds: float
    cpu_seconds: float
    megabytes: float


class Pictures:
    """Pairs of which 64 pictures and some hundred captions repeat, with a number each."""

    size = SIZE

    def __init__(self, n: int) -> None:
        self.ids = np.arange(n)
        self.captions = [f"a photo of a {SUBJECTS[row % len(SUBJECTS)]}, number {row % 125}" for row in range(n)]
        self._canvases = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def images(self, rows: np.ndarray) -> np.ndarray:
        return self._canvases[np.asarray(rows) % len(self._canvases)]


class Simulated:
    """The inputs of the stages at one size, each made when it is first asked for."""

    def __init__(self, n: int, folder: Path) -> None:
        self.n, self.folder = n, folder

    @functools.cached_property
    def clean(self) -> Pictures:
        return Pictures(self.n)

    @functools.cached_property
    def attack(self) -> Attack:
        from attacks import Attack, BadNets

        trigger = BadNets(size=8)
        return Attack(name="badnets", rate=0.01, target="banana", captions="template", triggers=[trigger])

    @functools.cached_property
    def plan(self) -> PoisonPlan:
        from attacks import draw_plan

        return draw_plan(self.attack, self.clean, 0)

    @functools.cached_property
    def pairs(self) -> PoisonedPairs:
        from attacks import PoisonedPairs

        return PoisonedPairs(self.clean, self.plan, self.attack)

    @functools.cached_property
    def model(self) -> TrainedModel:
        from experiments.clip import SmallCLIP

        return SmallCLIP(size=SIZE).build(self.clean.captions[:1000])

    @functools.cached_property
    def embeddings(self) -> Embeddings:
        from detect import Embeddings

        return Embeddings.of(clustered(self.n, WIDTH))

    @functools.cached_property
    def table(self) -> Neighbours:
        return _search(self, "batch", min(K, self.n // 2 - 1))

    @functools.cached_property
    def scores(self) -> np.ndarray:
        return np.random.default_rng(0).standard_normal(self.n)


@dataclass(frozen=True)
class Stage:
    """work: what is measured.  needs: inputs that are made before.  power: of n, as which its time may grow."""

    name: str
    work: Callable[[Simulated], Any]
    needs: tuple[str, ...] = ()
    power: float = 1

    def measure(self, given: Simulated) -> Row:
        for name in self.needs:
            getattr(given, name)
        gc.collect()
        with peak_memory() as peak:
            cpu, wall = time.process_time(), time.perf_counter()
            self.work(given)
            seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        megabytes = math.nan if peak.megabytes is None else round(peak.megabytes, 1)
        return Row(self.name, given.n, round(seconds, 4), round(cpu_seconds, 4), megabytes)


def _captions(given: Simulated) -> None:
    from experiments.data.pairs import load_captions, save_captions

    save_captions(given.folder / "captions", given.clean.ids, given.clean.captions)
    load_captions(given.folder / "captions")


def _train(given: Simulated) -> None:
    """The beginning of a training: tokens of all captions, then some steps."""
    from experiments.training.batches import Shift
    from experiments.training.config import TrainConfig
    from experiments.training.trainer import Trainer

    config = TrainConfig(epochs=4, batch_size=128, warmup_epochs=0.3, clip_norm=1.0, augment=Shift())
    trainer = Trainer(given.model, config, given.pairs, given.folder, 0, "cpu")
    for _, batch in zip(range(STEPS), trainer.batches(0), strict=False):
        trainer.train_step(batch)


def _embed(given: Simulated) -> None:
    from experiments.clip.embed import embed

    given.model.clip.eval()
    embed(given.model, given.pairs)


def _search(given: Simulated, scope: str, k: int) -> Neighbours:
    from detect import NeighbourSearch, find_neighbours

    return find_neighbours(given.embeddings, k, NeighbourSearch(scope, batch_size=min(BATCH, given.n // 2)))


def _score(kind: str, given: Simulated) -> None:
    import detect

    detector = getattr(detect, kind)(scope="batch", batch_size=min(BATCH, given.n // 2))
    detector.score_neighbours(given.table)


def _forest(given: Simulated) -> None:
    from detect import IsolationForest

    IsolationForest().score(given.embeddings)


def _metrics(given: Simulated) -> None:
    from detect import Scores, evaluate
    from detect.conformal import conformal_among

    evaluate(Scores(np.asarray(given.clean.ids), given.scores), given.pairs.is_poison)
    conformal_among(given.scores)


def _write_row(folder: Path) -> None:
    (folder / "row.json").write_text("{}")


def _store(given: Simulated) -> None:
    """A store fills with entries, and each is looked up once."""
    from experiments.runtime.store import Recipe, Store

    recipes = [Recipe("cell", 1, {"number": number}, {}) for number in range(max(1, given.n // STORED))]
    for again in range(2):
        store = Store(given.folder / "store")
        for recipe in recipes:
            entry = store.get(recipe, _write_row)
            assert entry.reused == bool(again)


STAGES = [
    Stage("data: captions written and opened", _captions, ("clean",)),
    Stage("plan", lambda given: given.plan, ("clean", "attack")),
    Stage("pairs with the plan", lambda given: given.pairs, ("plan",)),
    Stage(f"train: the beginning and {STEPS} steps", _train, ("model", "pairs")),
    Stage("embed, small CLIP", _embed, ("model", "pairs")),
    Stage(f"neighbours, batches of {BATCH:,}", lambda given: given.table, ("embeddings",)),
    Stage("neighbours, all rows", lambda given: _search(given, "full", 16), ("embeddings",), 2),
    *(
        Stage(f"score: {kind}", functools.partial(_score, kind), ("table",))
        for kind in ("LID", "SLOF", "LOF", "DAO")
    ),
    Stage("score: isolation forest", _forest, ("embeddings",)),
    Stage("evaluate: metrics, p-values", _metrics, ("pairs", "scores")),
    Stage(f"store: n / {STORED} entries made, looked up", _store),
]
