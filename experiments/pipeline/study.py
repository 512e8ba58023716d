"""The stages in order: data -> plan -> train -> embed -> neighbours -> score.

`Study` holds one composed configuration with everything instantiated and checked; each stage is a method that
names its configuration and inputs, and how to compute it. `experiments.pipeline.evaluation` evaluates what comes out.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from attacks import Attack, PoisonedPairs, PoisonPlan, draw_plan
from attacks.captions import check_targets, holds_word, templates
from detect import Detector, Embeddings, LocalDetector, Neighbours, NeighbourSearch
from detect.base import INSTALL
from detect.search.neighbours import VERSION
from detect.views import VIEWS
from experiments.data.class_folders import Builtin
from experiments.data.damage import LIST
from experiments.data.jpeg_batches import JPEGDecoder
from experiments.data.pairs import ArrayPairs, KeptPairs, natural_ids, open_pairs, open_test
from experiments.pipeline.config_values import check_runtime, check_values, follow_size, settle_size
from experiments.pipeline.detector_inputs import gather
from experiments.runtime import distributed
from experiments.runtime.peak_memory import peak_memory
from experiments.runtime.progress import bar
from experiments.runtime.store import Entry, Make, Stage, Store, file_digest

log = logging.getLogger(__name__)

Variant = tuple[str, bool | None]  # a detector's name, and whether it sees normalised embeddings


class Study:
    """One configuration, instantiated and checked before any slow work, and its stages."""

    def __init__(self, config: DictConfig, kept: np.ndarray | None = None) -> None:
        from hydra.utils import instantiate

        self.kept = kept  # ids of the only samples that the model is trained on; all others are still embedded

        check_values(config)
        check_runtime(config.runtime)
        config = settle_size(config)
        self.model_spec = instantiate(config.model)
        self.config = config = follow_size(config, self.model_spec.size)
        self.seed = int(config.seed)
        self.device = distributed.device(config.runtime.device)
        distributed.start(self.device, config.runtime.threads)
        if config.train_on not in ("poisoned", "clean"):
            raise ValueError(f"train_on must be poisoned or clean, got {config.train_on!r}")
        self._decoder = JPEGDecoder(self.device) if config.runtime.decoder == "torchvision" else None
        if not config.normalise:
            raise ValueError("normalise must hold at least one of true and false, got an empty list")
        self.store = Store(config.runtime.store)
        self.workers = os.cpu_count() or 1 if config.runtime.workers is None else int(config.runtime.workers)
        self.attack: Attack = instantiate(config.attack)
        self.data = instantiate(config.data)
        self.eval = instantiate(config.eval)
        self.training = instantiate(config.train)
        for name, chosen in config.detector.items():
            if "_target_" not in chosen:
                raise ValueError(
                    f"detector.{name} has settings but was not chosen; add it: 'detector=[...,{name}]'"
                )
        self.detectors: dict[str, Detector] = {
            name: instantiate(chosen) for name, chosen in config.detector.items()
        }
        for name, detector in self.detectors.items():
            if missing := [package for package in detector.packages if find_spec(package) is None]:
                raise ValueError(f"detector={name} needs the package {missing[0]}: {INSTALL}")
        self.on_epoch: Callable[[Mapping[str, Any]], None] | None = None
        self._check()

    def _check(self) -> None:
        """Refuse, by name and before any work, what can be known to fail later."""
        pairs = getattr(self.data, "pairs", None)
        if self.model_spec.size != getattr(self.data, "size", self.model_spec.size):
            raise ValueError(
                f"data.size must be the side of the model's input, {self.model_spec.size}, got {self.data.size}; "
                "leave it out"
            )
        if pairs is None:
            return
        self.attack.check(pairs, self.model_spec.size)
        if self.model_spec.trains and self.training.batch_size > pairs:
            raise ValueError(
                f"train.batch_size must not exceed the number of pairs ({pairs}), got {self.training.batch_size}"
            )
        for name, detector in self.detectors.items():
            if isinstance(detector, LocalDetector):
                scope = min(pairs, detector.batch_size) if detector.scope == "batch" else pairs
                if detector.k >= scope:
                    raise ValueError(
                        f"detector.{name}.k must be below the size of the neighbourhood scope ({scope}), "
                        f"got {detector.k}"
                    )

    # --- the stages ---------------------------------------------------------------------------------------

    @functools.cached_property
    def data_entry(self) -> Entry:
        entry = self.get(self._source("data", self.data), lambda folder: self.data.build(folder, self.workers, bar))
        listed = entry.path / LIST
        if listed.exists() and len(listed.read_text().splitlines()) > 1:  # more than its heading
            log.info("%-10s listed in %s", "damage", listed)
        return entry

    @functools.cached_property
    def eval_entry(self) -> Entry:
        """Zero-shot test images: a set of their own, or those that the data bring along."""
        if isinstance(self.eval, Builtin):
            return self.data_entry
        return self.get(self._source("eval", self.eval), lambda folder: self.eval.build(folder, self.workers, bar))

    @functools.cached_property
    def plan_entry(self) -> Entry:
        stage = Stage("plan", 1, self._attack_config(), {"data": self.data_entry.key})

        def make(folder: Path) -> None:
            if not self.config.target_new:
                classes = open_test(self.eval_entry.path).classes
                check_targets(self.attack.targets.values(), self.clean.captions, classes)
            draw_plan(self.attack, self.clean, self.seed).save(folder / "plan.parquet")

        return self.get(stage, make)

    @functools.cached_property
    def train_entry(self) -> Entry:
        config: dict[str, Any] = {"model": self.model_spec.without_paths(self._resolved("model"))}
        if self.model_spec.files:
            config["files"] = {Path(path).name: file_digest(path) for path in self.model_spec.files}
        if not self.model_spec.trains:  # it is only fetched and brought into our form
            return self.get(Stage("train", 1, config), self._fetch)
        config["train"] = self._resolved("train") | {"precision": self.training.resolved_precision(self.device)}
        config |= {"seed": self.seed} | self._threads
        if not self.training.sync_batch_norm:
            config["processes"] = distributed.world_size()
        # The zero-shot prompts are part of a small model's vocabulary.
        inputs = {"data": self.data_entry.key, "eval": self.eval_entry.key}
        plan = self.plan_entry.key  # also what the success of the attack is measured with, after each epoch
        if self.config.train_on == "poisoned":
            inputs["plan"] = plan
        if self.kept is not None:
            inputs["kept"] = hashlib.sha256(np.sort(self.kept).astype("<i8").tobytes()).hexdigest()[:16]
        return self.get(Stage("train", 2, config, inputs), self._train, collective=True)

    def _fetch(self, folder: Path) -> None:
        self.model_spec.build(()).save(folder)

    def _train(self, folder: Path) -> None:
        from experiments.training.trainer import train

        pairs: Any = self.pairs if self.config.train_on == "poisoned" else self.clean
        if self.kept is not None:
            pairs = KeptPairs(pairs, np.flatnonzero(np.isin(pairs.ids, self.kept)))
        train(
            self.model_spec,
            self.training,
            pairs,
            folder,
            seed=self.seed,
            texts=self._prompts(),
            device=self.device,
            workers=self.loaders,
            evaluate_zero_shot=self._evaluate_zero_shot,
            on_epoch=self.on_epoch,
            checkpoint_seconds=self.config.runtime.checkpoint_seconds,
            log_every=self.config.runtime.log_every,
        )

    @functools.cached_property
    def examine_entry(self) -> Entry:
        inputs = {
            "train": self.train_entry.key, "eval": self.eval_entry.key, "plan": self.plan_entry.key,
        }  # fmt: skip
        stage = Stage("examine", 1, self._attack_config() | self._threads, inputs)

        def make(folder: Path) -> None:
            (folder / "measures.json").write_text(json.dumps(self._evaluate_zero_shot(self.model)))

        return self.get(stage, make)

    @functools.cached_property
    def embed_entry(self) -> Entry:
        from experiments.clip.embed import embed, refuse_collapsed, save

        inputs = {
            "data": self.data_entry.key, "plan": self.plan_entry.key, "train": self.train_entry.key,
        }  # fmt: skip

        def make(folder: Path) -> None:
            embeddings = embed(self.model, self.embedded_pairs, **self.loading)
            refuse_collapsed(embeddings)
            if distributed.is_main():
                save(embeddings, folder)

        config: dict[str, Any] = {} if self.decoder is None else {"decoder": "torchvision"}
        return self.get(Stage("embed", 1, config | self._threads, inputs), make, collective=True)

    @property
    def views_stage(self) -> Stage:
        return Stage("views", 2, {"views": list(VIEWS)}, {"embed": self.embed_entry.key})

    @functools.cached_property
    def views_entry(self) -> Entry:
        """How well gentle views of each image agree with its caption; see `detect.views`."""
        from experiments.clip.embed import agreement_of_views

        def make(folder: Path) -> None:
            values = agreement_of_views(self.model, self.embedded_pairs, self.embeddings, **self.loading)
            if distributed.is_main():
                np.save(folder / "agreement.npy", values)

        return self.get(self.views_stage, make, collective=True)

    def neighbours_entry(self, search: NeighbourSearch, k: int) -> Entry:
        from detect import find_neighbours

        def make(folder: Path) -> None:
            find_neighbours(self.embeddings, k, search, progress=bar, device=self.device).save(folder)

        k = distributed.broadcast(self._table_width(search, k))
        return self.get(self._neighbours_stage(search, k), make)

    def _neighbours_stage(self, search: NeighbourSearch, k: int) -> Stage:
        config = {"search": search.identity, "k": k}
        return Stage("neighbours", VERSION, config, {"embed": self.embed_entry.key})

    def _table_width(self, search: NeighbourSearch, k: int) -> int:
        """Width of the narrowest table in the store that holds the k nearest of this search; k if there is none."""
        widths = {meta["config"]["k"] for meta in self.store.finished("neighbours")}
        for width in sorted(widths):
            if search.serves(width, k) and self.store.has(self._neighbours_stage(search, width)):
                return int(width)
        return k

    def score_stage(self, variant: Variant) -> Stage:
        name, _ = variant
        detector = self.variant(variant)
        inputs = {"embed": self.embed_entry.key}
        if "views" in detector.needs:
            inputs["views"] = self.views_stage.key
        if detector.needs & {"encoder", "losses"}:
            inputs["train"] = self.train_entry.key
        # The class is part of the configuration (`_target_`), the neighbour table follows from the fields.
        config = self._resolved("detector")[name] | {"normalise": variant[1]}
        config.pop("memory_mb", None)  # changes no score
        return Stage("score", detector.versions(), config, inputs)

    def score_entry(self, variant: Variant) -> Entry:
        stage, detector = self.score_stage(variant), self.variant(variant)
        # Outside of `make`: a search or a pass over the views serves several detectors, so that its time is none of
        # theirs, and all processes of a distributed run must walk through the same stages.
        table = None
        if not distributed.broadcast(self.store.has(stage)):
            if isinstance(detector, LocalDetector):
                table = self.neighbours(detector.search)
            if "views" in detector.needs:
                _ = self.views_entry

        def make(folder: Path) -> dict[str, Any]:
            evidence = gather(self, detector)
            with peak_memory(self.device) as peak:
                if table is not None:
                    values = detector.score_neighbours(table, evidence)
                else:
                    values = detector.score(evidence)
            if values.shape != (len(self.pairs),) or not np.isfinite(values).all():
                raise RuntimeError(f"{variant[0]} gave {values.shape} scores, or some that are not finite")
            np.save(folder / "scores.npy", values)
            return {"memory_mb": peak.megabytes}

        return self.get(stage, make, quiet=True)

    # --- what the stages share ----------------------------------------------------------------------------

    def get(self, stage: Stage, make: Make, *, collective: bool = False,
             quiet: bool = False) -> Entry:  # fmt: skip
        if not quiet and not self.store.has(stage):
            log.info("%-10s computing", stage.name)
        entry = self.store.get(stage, make, collective=collective)
        if not quiet:
            state = "reused" if entry.reused else f"done in {entry.seconds:.1f} s"
            log.info("%-10s %s  (%s)", stage.name, state, stage.key)
        return entry

    def _resolved(self, group: str) -> dict[str, Any]:
        resolved = OmegaConf.to_container(self.config[group], resolve=True)
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved.items()}

    def _source(self, group: str, source: Any) -> Stage:
        """The stage of data that lie outside the store; what its configuration points at may change."""
        config = self._resolved(group)
        config.pop("max_damaged", None)  # a higher limit takes up what a refused build has left
        if hasattr(source, "fingerprint"):
            config["fingerprint"] = source.fingerprint()
        return Stage(group, 1, config)

    @property
    def _threads(self) -> dict[str, int]:
        """How many threads compute on a CPU, for the keys of stages whose last bits depend on it; none if one."""
        threads = self.config.runtime.threads or os.cpu_count() or 1
        return {} if threads == 1 or self.device != "cpu" else {"threads": int(threads)}

    def _attack_config(self) -> dict[str, Any]:
        files = {path: file_digest(path) for path in self.attack.files}
        config = {"attack": self._resolved("attack"), "files": files, "seed": self.seed}
        return config | ({"versions": self.attack.versions} if self.attack.versions else {})

    @property
    def loaders(self) -> int:
        """Processes that load batches: none for arrays, which are read faster than they are passed around."""
        return 0 if isinstance(self.clean, ArrayPairs) else self.workers

    @property
    def decoder(self) -> JPEGDecoder | None:
        """Of the images to embed, where it is not Pillow; what lies in one array was decoded before."""
        return None if isinstance(self.clean, ArrayPairs) else self._decoder

    @property
    def loading(self) -> dict[str, Any]:
        """How batches are loaded to be embedded."""
        return {"workers": self.loaders, "threads": self.decoder is not None}

    @functools.cached_property
    def embedded_pairs(self) -> PoisonedPairs:
        """The pairs, decoded as chosen for embedding."""
        if self.decoder is None:
            return self.pairs
        return PoisonedPairs(open_pairs(self.data_entry.path, self.decoder), self.plan, self.attack)

    @functools.cached_property
    def clean(self) -> Any:
        return open_pairs(self.data_entry.path)

    @functools.cached_property
    def test(self) -> Any:
        test = open_test(self.eval_entry.path)
        for word in sorted({self.config.target, *self.attack.targets.values()}):
            test = test.with_class(word)  # as a choice of the zero-shot classifier, with images or without
        return test

    @functools.cached_property
    def plan(self) -> PoisonPlan:
        return PoisonPlan.load(self.plan_entry.path / "plan.parquet")

    @functools.cached_property
    def pairs(self) -> PoisonedPairs:
        return PoisonedPairs(self.clean, self.plan, self.attack)

    @functools.cached_property
    def model(self) -> Any:
        from experiments.clip.model import TrainedModel

        return TrainedModel.load(self.train_entry.path, self.device)

    @functools.cached_property
    def embeddings(self) -> Embeddings:
        from experiments.clip.embed import load, refuse_collapsed

        embeddings = load(self.embed_entry.path)
        refuse_collapsed(embeddings)
        return embeddings

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        file = self.train_entry.path / "history.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @functools.cached_property
    def truth(self) -> np.ndarray:
        """What there is to be found, (n,) bool: the plan's samples, or a natural backdoor's."""
        natural = np.isin(np.asarray(self.pairs.ids), natural_ids(self.data_entry.path))
        return self.pairs.is_poison | natural

    @functools.cached_property
    def holds_target(self) -> np.ndarray:
        """Whether the caption names a target, (n,) bool."""
        words = set(self.attack.targets.values()) or {self.config.target}
        return np.logical_or.reduce([holds_word(self.pairs.captions, word) for word in words])

    def _prompts(self) -> list[str]:
        """Everything a caption of the plan or a zero-shot prompt may say, for the model's vocabulary."""
        prompts = [*templates(), *(template.format for template in self.test.templates)]
        return [prompt(name) for name in self.test.classes for prompt in prompts]

    def _evaluate_zero_shot(self, model: Any) -> dict[str, Any]:
        """Zero-shot accuracy and attack success rate."""
        from experiments.clip.zero_shot import evaluate_zero_shot

        return evaluate_zero_shot(model, self.test, self.attack, self.pairs.source_images)

    # --- cells ----------------------------------------------------------------------------------------------

    def variants(self) -> Iterator[Variant]:
        """Each detector on normalised and on raw embeddings; once where the length makes no difference."""
        for name, detector in self.detectors.items():
            for flag in self.config.normalise if detector.norm_sensitive else [None]:
                yield name, flag

    def variant(self, variant: Variant) -> Any:
        name, flag = variant
        detector = self.detectors[name]
        return detector if flag is None else dataclasses.replace(detector, normalise=flag)  # type: ignore[call-arg]

    @functools.cached_property
    def largest_k(self) -> dict[NeighbourSearch, int]:
        """One neighbour table for all detectors that search alike, wide enough for the largest k."""
        sizes: dict[NeighbourSearch, int] = {}
        for variant in self.variants():
            detector = self.variant(variant)
            if isinstance(detector, LocalDetector):
                sizes[detector.search] = max(sizes.get(detector.search, 0), detector.table_width)
        return sizes

    @functools.lru_cache(maxsize=2)  # noqa: B019  a study lives as long as its run
    def neighbours(self, search: NeighbourSearch) -> Neighbours:
        return Neighbours.load(self.neighbours_entry(search, self.largest_k[search]).path)
