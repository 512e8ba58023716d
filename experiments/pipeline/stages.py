"""All stages, in order: what each reads, takes, gives and computes. Keys and `run.py --stages` come from here.

Raise a stage's version when its code changes its results, or old results will be taken for new ones.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks import Attack, PoisonedPairs, PoisonPlan, draw_plan
from attacks.captions import check_targets, holds_word, templates
from detect import DetectorInputs, Embeddings, LocalDetector, Neighbours
from detect.search.neighbours import VERSION
from detect.views import VIEWS
from experiments.data.pairs import ArrayPairs, KeptPairs, TestSet, natural_ids, open_pairs, open_test
from experiments.pipeline.experiment import Experiment, ScoreSpec, uses_own_test_set
from experiments.pipeline.graph import STAGES, Call, Run, stage
from experiments.runtime import distributed
from experiments.runtime.peak_memory import peak_memory
from experiments.runtime.progress import bar

if TYPE_CHECKING:
    from experiments.clip.model import TrainedModel
    from experiments.data.file_pairs import FilePairs
    from experiments.data.jpeg_batches import JPEGDecoder
    from experiments.data.shard_pairs import ShardPairs

__all__ = ["STAGES"]


# --- data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSet:
    """What a data source has built in `path`."""

    path: Path

    def pairs(self, decoder: JPEGDecoder | None = None) -> ArrayPairs | ShardPairs | FilePairs:
        return open_pairs(self.path, decoder)


@stage("data", "data", reads=("source",), load=lambda entry: DataSet(entry.path))
def data(run: Run) -> None:
    """draws or reads image-caption pairs, checks them, and keeps a clean test set"""
    run.source.build(run.folder, run.resources.workers, bar)


@stage(
    "test",
    "test",
    reads=("test_source",),
    instead=lambda e: "own_test" if uses_own_test_set(e) else None,
    load=lambda entry: open_test(entry.path),
)
def test(run: Run) -> None:
    """reads labelled test images, where the data hold out none of their own"""
    run.test_source.build(run.folder, run.resources.workers, bar)


@stage(None, "own_test")
def own_test(run: Run, data: DataSet) -> TestSet:
    """the test set that was held out of the data"""
    return open_test(data.path)


@stage(None, "clean")
def clean(run: Run, data: DataSet) -> ArrayPairs | ShardPairs | FilePairs:
    """the pairs as they are"""
    return data.pairs()


# --- the attack ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Poisoning:
    """An attack, and its plan for one data set."""

    attack: Attack
    plan: PoisonPlan

    def of(self, clean: Any) -> PoisonedPairs:
        return PoisonedPairs(clean, self.plan, self.attack)


@stage(
    "plan",
    "plan",
    reads=("attack", "seed"),
    load=lambda entry: PoisonPlan.load(entry.path / "plan.parquet"),
    save=lambda plan, folder: plan.save(folder / "plan.parquet"),
)
def plan(run: Run, clean: Any) -> PoisonPlan:
    """decides which rows are poisoned, with which caption and which trigger"""
    return draw_plan(run.attack, clean, run.seed)


@stage(None, "known_targets", reads=("attack",))
def known_targets(run: Run, clean: Any, test: TestSet) -> None:
    """refuses a target that no caption and no class names (ValueError names the nearest)"""
    check_targets(run.attack.targets.values(), clean.captions, test.classes)


@stage(None, "poisoning", reads=("attack",))
def poisoning(run: Run, plan: PoisonPlan) -> Poisoning:
    """the attack with its plan"""
    return Poisoning(run.attack, plan)


@stage(None, "pairs")
def pairs(run: Run, clean: Any, poisoning: Poisoning) -> PoisonedPairs:
    """the pairs with the plan applied to them"""
    return poisoning.of(clean)


@stage(None, "train_ids")
def train_ids(run: Run, clean: Any) -> np.ndarray:
    """ids of the samples that the model is trained on: all, unless a task gives others"""
    return np.asarray(clean.ids)


# --- the model ----------------------------------------------------------------------------------------------------


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


@stage("fetch", "fetched", reads=("model_spec",), load=lambda entry: Trained(entry.path))
def fetch(run: Run) -> None:
    """loads a model that is used without training"""
    run.model_spec.build(()).save(run.folder)


@stage(
    "train",
    "trained",
    version=3,
    reads=("model_spec", "training", "seed", "targets", "threads", "train_on"),
    optional={"poisoning": lambda e: e.train_on == "poisoned"},
    load=lambda entry: Trained(entry.path),
    instead=lambda e: None if e.model_spec.trains else "fetched",
    collective=True,
)
def train(run: Run, clean: Any, test: TestSet, train_ids: np.ndarray, poisoning: Poisoning | None = None) -> None:
    """trains a CLIP model; a killed training resumes from its last checkpoint"""
    from experiments.training.trainer import train

    source = clean if poisoning is None else poisoning.of(clean)
    kept = np.isin(np.asarray(source.ids), train_ids)
    test = with_targets(test, run.targets)
    prompts = [*templates(), *(template.format for template in test.templates)]
    train(
        run.model_spec,
        run.training,
        source if kept.all() else KeptPairs(source, np.flatnonzero(kept)),
        run.folder,
        seed=run.seed,
        texts=[prompt(name) for name in test.classes for prompt in prompts],
        device=run.resources.device,
        workers=run.resources.loaders(clean),
        evaluate_zero_shot=functools.partial(_measure, test=test, poisoning=poisoning, clean=clean),
        on_epoch=run.resources.on_epoch,
        checkpoint_seconds=run.resources.checkpoint_seconds,
        log_every=run.resources.log_every,
    )


def with_targets(test: TestSet, targets: list[str]) -> TestSet:
    """The targets are choices of the zero-shot classifier, with images or without."""
    for word in targets:
        test = test.with_class(word)
    return test


def _measure(model: Any, test: TestSet, poisoning: Poisoning | None, clean: Any) -> dict[str, Any]:
    """Zero-shot accuracy and, for a poisoning, attack success rate."""
    from experiments.clip.zero_shot import evaluate_zero_shot

    if poisoning is None:
        return evaluate_zero_shot(model, test, None)
    return evaluate_zero_shot(model, test, poisoning.attack, poisoning.of(clean).source_images)


@stage(None, "model")
def model(run: Run, trained: Trained) -> TrainedModel:
    """the model, on the device"""
    return trained.model(run.resources.device)


@stage(
    "measure",
    "measures",
    reads=("targets", "threads"),
    save=lambda found, folder: _write_json(folder, found),
    load=lambda entry: json.loads((entry.path / "measures.json").read_text()),
)
def measure(run: Run, model: Any, test: TestSet, poisoning: Poisoning, clean: Any) -> dict[str, Any]:
    """measures zero-shot accuracy and attack success rate"""
    return _measure(model, with_targets(test, run.targets), poisoning, clean)


def _write_json(folder: Path, found: dict[str, Any]) -> None:
    (folder / "measures.json").write_text(json.dumps(found))


# --- embeddings ---------------------------------------------------------------------------------------------------


@stage(None, "shown", reads=("decoder",))
def shown(run: Run, data: DataSet, poisoning: Poisoning) -> PoisonedPairs:
    """the pairs, decoded by the decoder that is chosen for embedding"""
    return poisoning.of(data.pairs(run.resources.decoder(run.decoder, data.pairs())))


def _save_embeddings(embeddings: Embeddings, folder: Path) -> None:
    from experiments.clip.embed import save

    if distributed.is_main():
        save(embeddings, folder)


def _load_embeddings(entry: Any) -> Embeddings:
    from experiments.clip.embed import load, refuse_collapsed

    embeddings = load(entry.path)
    refuse_collapsed(embeddings)
    return embeddings


@stage("embed", "embeddings", reads=("threads",), collective=True, save=_save_embeddings, load=_load_embeddings)
def embed(run: Run, model: Any, shown: PoisonedPairs) -> Embeddings:
    """embeds the image and the caption of every pair"""
    from experiments.clip.embed import embed, refuse_collapsed

    embeddings = embed(model, shown, **run.resources.loading(shown.clean))
    refuse_collapsed(embeddings)
    return embeddings


def _save_views(values: np.ndarray, folder: Path) -> None:
    if distributed.is_main():
        np.save(folder / "agreement.npy", values)


@stage(
    "views",
    "views",
    version=2,
    reads=("threads",),
    collective=True,
    key_settings=lambda e: {"views": list(VIEWS)},
    load=lambda entry: np.load(entry.path / "agreement.npy"),
    save=_save_views,
)
def views(run: Run, model: Any, shown: PoisonedPairs, embeddings: Embeddings) -> np.ndarray:
    """embeds five mild augmentations of every image, for Flicker and Tandem"""
    from experiments.clip.embed import agreement_of_views

    return agreement_of_views(model, shown, embeddings, **run.resources.loading(shown.clean))


# --- scores -------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)  # tables are large, and detectors that share one come one after the other
def _load_neighbours(path: Path) -> Neighbours:
    return Neighbours.load(path)


def _search_identity(experiment: Experiment, search: Any, k: int) -> dict[str, Any]:
    # A wider exact table serves a smaller k (see `wider`), an approximate one has other neighbours.
    return {"search": search.identity} | ({} if search.serves(k + 1, k) else {"k": k})


@stage(
    "neighbours",
    "neighbours",
    version=VERSION,
    wider="k",
    key_settings=_search_identity,
    save=lambda table, folder: table.save(folder),
    load=lambda entry: _load_neighbours(entry.path),
)
def neighbours(run: Run, embeddings: Embeddings, *, search: Any, k: int) -> Neighbours:
    """finds each sample's nearest neighbours: one table for all detectors with the same search settings"""
    from detect import find_neighbours

    return find_neighbours(embeddings, k, search, progress=bar, device=run.resources.device)


@stage(None, "losses")
def losses(run: Run, trained: Trained) -> np.ndarray:
    """each sample's loss in each epoch of training"""
    return trained.losses


@stage(None, "captions")
def captions(run: Run, pairs: PoisonedPairs) -> list[str]:
    """the captions"""
    return pairs.captions


@stage(None, "images")
def images(run: Run, pairs: PoisonedPairs, model: Any) -> Any:
    """rows -> images as the model sees them"""

    def pixels(rows: np.ndarray) -> Any:
        import torch

        return model.pixels(torch.from_numpy(pairs.images(rows)))

    return pixels


@dataclass(frozen=True)
class Scored:
    """values: (n,).  seconds, memory_mb: what computing them took."""

    values: np.ndarray
    seconds: float
    memory_mb: float | None


PROVIDERS = {"views": "views", "losses": "losses", "encoder": "model", "captions": "captions", "images": "images"}
"""What a detector may need beside embeddings -> the value that provides it."""


def _score_inputs(experiment: Experiment, spec: ScoreSpec) -> dict[str, Call]:
    detector = experiment.detector(spec)
    calls = {need: Call(PROVIDERS[need]) for need in sorted(detector.needs) if need in PROVIDERS}
    if isinstance(detector, LocalDetector):
        width = experiment.table_width(detector.search)
        calls["neighbours"] = Call("neighbours", {"search": detector.search, "k": width})
    return {"embeddings": Call("embeddings")} | calls


def _save_scores(scored: tuple[np.ndarray, float | None], folder: Path) -> dict[str, Any]:
    np.save(folder / "scores.npy", scored[0])
    return {"memory_mb": scored[1]}


@stage(
    "score",
    "scores",
    version=lambda e, spec: e.detector(spec).versions(),
    reads=("detector",),
    quiet=True,
    inputs=_score_inputs,
    key_settings=lambda e, spec: e.detector_identity(spec),
    save=_save_scores,
    load=lambda entry: Scored(np.load(entry.path / "scores.npy"), entry.seconds, entry.metadata.get("memory_mb")),
)
def score(
    run: Run, embeddings: Embeddings, neighbours: Neighbours | None = None, *, spec: ScoreSpec, **needed: Any
) -> tuple[np.ndarray, float | None]:
    """gives each sample a score, detector by detector; detectors never see labels"""
    detector, inputs = run.detector(spec), DetectorInputs(embeddings, **needed)
    with peak_memory(run.resources.device) as peak:
        values = detector.score(inputs) if neighbours is None else detector.score_neighbours(neighbours, inputs)
    if values.shape != (len(embeddings),) or not np.isfinite(values).all():
        raise RuntimeError(f"{spec.detector} gave {values.shape} scores, or some that are not finite")
    return values, peak.megabytes


# --- evaluation ---------------------------------------------------------------------------------------------------


@stage(None, "truth")
def truth(run: Run, data: DataSet, pairs: PoisonedPairs) -> np.ndarray:
    """which samples should be found, (n,) bool: those of the plan and of a natural backdoor"""
    return pairs.is_poison | np.isin(np.asarray(pairs.ids), natural_ids(data.path))


@stage(None, "holds_target", reads=("attack", "target"))
def holds_target(run: Run, pairs: PoisonedPairs) -> np.ndarray:
    """whether the caption names a target, (n,) bool"""
    words = set(run.attack.targets.values()) or {run.target}
    return np.logical_or.reduce([holds_word(pairs.captions, word) for word in words])


@stage(
    "evaluate",
    "cell",
    version=3,
    reads=("labels", "detector"),
    quiet=True,
    load=lambda entry: json.loads((entry.path / "cell.json").read_text()),
    inputs=lambda e, spec: (
        {name: Call(name) for name in ("pairs", "truth", "holds_target", "measures")}
        | {"scores": Call("scores", {"spec": spec})}
    ),
    key_settings=lambda e, spec: {"spec": dataclasses.asdict(spec)},
)
def evaluate(
    run: Run,
    pairs: Any,
    truth: np.ndarray,
    holds_target: np.ndarray,
    measures: dict[str, Any],
    scores: Scored,
    *,
    spec: ScoreSpec,
) -> None:
    """compares scores with the plan: AUROC, AUPRC, FPR at 95 and 100 % TPR, recall at 1 % removed"""
    from experiments.pipeline.evaluation import Facts, write_cell

    facts = Facts.of(run.labels, measures, truth)
    write_cell(run.folder, facts.row(spec, run.detector(spec)), np.asarray(pairs.ids), truth, holds_target, scores)
