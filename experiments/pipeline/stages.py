"""All stages, in order: what each reads, takes, gives and computes. Keys and `run.py --stages` come from here.

Raise a stage's version when its code changes its results, or old results will be taken for new ones.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from attacks import PoisonedPairs, PoisonPlan, draw_plan
from attacks.captions import holds_word
from detect import DetectorInputs, Embeddings, Neighbours
from detect.search.neighbours import VERSION, find_neighbours
from detect.views import DRIFT, VIEWS
from experiments.data.pairs import TestSet, keep, natural_ids, open_test
from experiments.pipeline import values as stored
from experiments.pipeline.defence_stage import defence
from experiments.pipeline.detector_inputs import cell_inputs, detector_inputs
from experiments.pipeline.earlier_model import half_as_long
from experiments.pipeline.experiment import ScoreSpec, own_test_set
from experiments.pipeline.graph import STAGES, Call, Run, stage
from experiments.pipeline.inversion_stage import OPTIONS, invert, invert_warp
from experiments.pipeline.rows import RunMetadata, write_cell
from experiments.pipeline.training_stage import train_model
from experiments.pipeline.values import DataSet, Poisoning, Scored, Trained, measure_model, with_targets
from experiments.runtime.peak_memory import peak_memory
from experiments.runtime.progress import bar

if TYPE_CHECKING:
    from experiments.clip.model import TrainedModel

__all__ = ["STAGES"]


# --- data ---------------------------------------------------------------------------------------------------------


@stage("data", "data", reads=("source",), form=stored.DATA)
def data(run: Run) -> None:
    """draws or reads image-caption pairs, checks them, and keeps a clean test set"""
    run.source.build(run.folder, run.resources.workers, bar)


@stage("test", "test", reads=("test_source",), instead=own_test_set, form=stored.TEST_SET)
def test(run: Run) -> None:
    """reads labelled test images, where the data hold out none of their own"""
    run.test_source.build(run.folder, run.resources.workers, bar)


@stage(None, "own_test")
def own_test(run: Run, data: DataSet) -> TestSet:
    """the test set that was held out of the data"""
    return open_test(data.path)


@stage(None, "clean")
def clean(run: Run, data: DataSet) -> Any:
    """the pairs as they are"""
    return data.pairs()


# --- the attack ---------------------------------------------------------------------------------------------------


@stage("plan", "plan", reads=("attack", "seed"), form=stored.PLAN)
def plan(run: Run, clean: Any) -> PoisonPlan:
    """decides which rows are poisoned, with which caption and which trigger"""
    return draw_plan(run.attack, clean, run.seed)


@stage(None, "known_targets", reads=("attack",))
def known_targets(run: Run, clean: Any, test: TestSet) -> None:
    """refuses a target that no caption and no class names (ValueError names the nearest)"""
    run.attack.check_words(clean.captions, test.classes)


@stage(
    "patch",
    "patch",
    reads=("patch_trigger", "patch_target", "seed", "threads"),
    inputs=lambda e: {"clean": Call("clean"), "model": Call("model", changes={"train_on": "clean"})},
    form=stored.PATCH,
)
def patch(run: Run, clean: Any, model: TrainedModel) -> np.ndarray:
    """optimises a trigger's patch on a model of the clean data, for attacks with such a trigger"""
    from experiments.clip.patch import optimise_patch

    if run.patch_trigger is None:
        raise ValueError("the attack has no trigger with a patch to optimise")
    return optimise_patch(model, clean, run.patch_trigger, run.patch_target, run.seed)


@stage(None, "poisoning", reads=("attack",), optional={"patch": lambda e: e.patch_trigger is not None})
def poisoning(run: Run, plan: PoisonPlan, patch: str | None = None) -> Poisoning:
    """the attack with its plan"""
    return Poisoning(run.attack if patch is None else run.attack.with_patch(patch), plan)


@stage(None, "pairs")
def pairs(run: Run, clean: Any, poisoning: Poisoning) -> PoisonedPairs:
    """the pairs with the plan applied to them"""
    return poisoning.of(clean)


@stage(None, "train_ids")
def train_ids(run: Run, clean: Any) -> np.ndarray:
    """ids of the samples that the model is trained on: all, unless a task gives others"""
    return np.asarray(clean.ids)


# --- the model ----------------------------------------------------------------------------------------------------


@stage("fetch", "fetched", reads=("model_spec",), form=stored.MODEL)
def fetch(run: Run) -> None:
    """loads a model that is used without training"""
    run.model_spec.build(()).save(run.folder)


@stage(
    "train",
    "trained",
    version=3,
    reads=("model_spec", "training", "seed", "targets", "threads", "train_on"),
    optional={"poisoning": lambda e: e.train_on == "poisoned"},
    form=stored.MODEL,
    instead=lambda e: None if e.model_spec.trains else "fetched",
    collective=True,
)
def train(run: Run, clean: Any, test: TestSet, train_ids: np.ndarray, poisoning: Poisoning | None = None) -> None:
    """trains a CLIP model; a killed training resumes from its last checkpoint"""
    pairs = keep(clean if poisoning is None else poisoning.of(clean), train_ids)
    train_model(run, pairs, clean, with_targets(test, run.targets), poisoning)


@stage(None, "model")
def model(run: Run, trained: Trained) -> TrainedModel:
    """the model, on the device"""
    return trained.model(run.resources.device)


@stage("measure", "measures", reads=("targets", "threads"), form=stored.MEASURES)
def measure(run: Run, model: Any, test: TestSet, poisoning: Poisoning, clean: Any) -> dict[str, Any]:
    """measures zero-shot accuracy and attack success rate"""
    return measure_model(model, with_targets(test, run.targets), poisoning, clean)


stage("invert", "inverted", form=stored.INVERTED, **OPTIONS)(invert)
stage("warp", "warped", form=stored.WARPED, **OPTIONS)(invert_warp)
stage("defence", "defended", quiet=True, form=stored.DEFENCE)(defence)


# --- embeddings ---------------------------------------------------------------------------------------------------


@stage(None, "shown", reads=("decoder",))
def shown(run: Run, data: DataSet, poisoning: Poisoning) -> PoisonedPairs:
    """the pairs, decoded by the decoder that is chosen for embedding"""
    return poisoning.of(data.pairs(run.resources.decoder(run.decoder, data.pairs())))


@stage("embed", "embeddings", reads=("threads",), collective=True, form=stored.EMBEDDINGS)
def embed(run: Run, model: Any, shown: PoisonedPairs) -> Embeddings:
    """embeds the image and the caption of every pair"""
    from experiments.clip.embed import embed, refuse_collapsed

    embeddings = embed(model, shown, **run.resources.loading(shown.clean))
    refuse_collapsed(embeddings)
    return embeddings


@stage(None, "earlier", inputs=lambda e: {"embeddings": Call("embeddings", changes=half_as_long(e))})
def earlier(run: Run, embeddings: Embeddings) -> Embeddings:
    """the embeddings of a model that was trained half as long, for Agreement"""
    return embeddings


@stage(
    "views",
    "views",
    version=2,
    reads=("threads",),
    collective=True,
    key_settings=lambda e: {"views": list(VIEWS)},
    form=stored.AGREEMENT,
)
def views(run: Run, model: Any, shown: PoisonedPairs, embeddings: Embeddings) -> np.ndarray:
    """embeds five mild augmentations of every image, for Flicker and Tandem"""
    from experiments.clip.embed import agreement_of_views

    return agreement_of_views(model, shown, embeddings, **run.resources.loading(shown.clean))


@stage(
    "drift",
    "drift",
    reads=("threads",),
    collective=True,
    key_settings=lambda e: {"views": list(DRIFT)},
    form=stored.DRIFT,
)
def drift(run: Run, model: Any, shown: PoisonedPairs, embeddings: Embeddings) -> np.ndarray:
    """measures how far five mild augmentations move each image's embedding, for Drift and DriftPursuit"""
    from experiments.clip.embed import drift_of_views

    return drift_of_views(model, shown, embeddings, **run.resources.loading(shown.clean))


# --- scores -------------------------------------------------------------------------------------------------------


@stage(
    "neighbours",
    "neighbours",
    version=VERSION,
    wider="k",
    key_settings=lambda e, search, k: e.search_identity(search, k),
    form=stored.NEIGHBOURS,
)
def neighbours(run: Run, embeddings: Embeddings, *, search: Any, k: int) -> Neighbours:
    """finds each sample's nearest neighbours: one table for all detectors with the same search settings"""
    return find_neighbours(embeddings, k, search, progress=bar, device=run.resources.device)


@stage(None, "losses")
def losses(run: Run, trained: Trained) -> np.ndarray:
    """(n, epochs) loss of each sample in each epoch; ValueError for a model that was not trained here."""
    return trained.losses


@stage(None, "captions")
def captions(run: Run, pairs: PoisonedPairs) -> list[str]:
    """the captions"""
    return pairs.captions


@stage(None, "images")
def images(run: Run, pairs: PoisonedPairs, model: Any) -> Any:
    """rows -> images as the model sees them"""
    return functools.partial(stored.seen_by, model, pairs)


@stage(
    "score",
    "scores",
    version=lambda e, spec: e.detector_versions(spec),
    reads=("detector",),
    quiet=True,
    inputs=detector_inputs,
    key_settings=lambda e, spec: e.detector_identity(spec),
    form=stored.SCORES,
)
def score(
    run: Run, embeddings: Embeddings, neighbours: Neighbours | None = None, *, spec: ScoreSpec, **needed: Any
) -> tuple[np.ndarray, float | None]:
    """gives each sample a score, detector by detector; detectors never see labels"""
    detector, inputs = run.detector(spec), DetectorInputs(embeddings, **needed)
    with peak_memory(run.resources.device) as peak:
        values = detector.score(inputs) if neighbours is None else detector.score_neighbours(neighbours, inputs)
    return stored.checked_scores(values, len(embeddings), spec.detector), peak.megabytes


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
    form=stored.CELL,
    inputs=cell_inputs,
    key_settings=lambda e, spec: {"spec": dataclasses.asdict(spec)},
)
def evaluate(
    run: Run, pairs: Any, truth: np.ndarray, holds_target: np.ndarray, measures: Any, scores: Scored, *, spec: Any
) -> None:
    """compares scores with the plan: AUROC, AUPRC, FPR at 95 and 100 % TPR, recall at 1 % removed"""
    row = RunMetadata.of(run.labels, measures, truth).row(spec, run.detector(spec))
    write_cell(run.folder, row, np.asarray(pairs.ids), truth, holds_target, scores)
