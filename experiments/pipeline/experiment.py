"""An experiment: one composed configuration, instantiated and checked. It computes nothing and changes nothing."""

from __future__ import annotations

import copy
import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from attacks import Attack, Trigger
from detect import Detector, LocalDetector
from detect.base import INSTALL
from detect.search.neighbours import NeighbourSearch
from experiments.data.class_folders import Builtin
from experiments.pipeline.config_values import check_runtime, check_values, follow_size, settle_size
from experiments.pipeline.entry_points import package_versions
from experiments.runtime import distributed
from experiments.runtime.store import file_digest

TRAIN_ON = ("poisoned", "clean")


@dataclass(frozen=True)
class ScoreSpec:
    """A detector, and whether it sees normalised embeddings (None: the norm makes no difference to it)."""

    detector: str
    normalise: bool | None


@dataclass(frozen=True)
class Experiment:
    """The parts that stages may declare in `reads`. `identity` gives what of a part belongs to a key.

    source: of the training data.  test_source: of the zero-shot images.  model_spec: what is trained.
    training: how.
    train_on: "poisoned", or "clean" for the control that never saw the poisons it embeds.
    """

    config: DictConfig
    seed: int
    target: str
    train_on: str
    attack: Attack
    source: Any
    test_source: Any
    model_spec: Any
    training: Any
    detectors: Mapping[str, Detector]

    @classmethod
    def of(cls, config: DictConfig) -> Experiment:
        """Instantiate and check; ValueError (or Hydra's InstantiationException around it) names what is wrong."""
        from hydra.utils import instantiate

        check_values(config)
        check_runtime(config.runtime)
        config = settle_size(config)
        model_spec = instantiate(config.model)
        config = follow_size(config, model_spec.size)
        for name, chosen in config.detector.items():
            if "_target_" not in chosen:
                raise ValueError(
                    f"detector.{name} has settings but was not chosen; add it: 'detector=[...,{name}]'"
                )
        return cls(
            config=config,
            seed=int(config.seed),
            target=str(config.target),
            train_on=config.train_on,
            attack=instantiate(config.attack),
            source=instantiate(config.data),
            test_source=instantiate(config.eval),
            model_spec=model_spec,
            training=instantiate(config.train),
            detectors={name: instantiate(chosen) for name, chosen in config.detector.items()},
        )

    def __post_init__(self) -> None:
        if self.train_on not in TRAIN_ON:
            raise ValueError(f"train_on must be {' or '.join(TRAIN_ON)}, got {self.train_on!r}")
        if not self.config.normalise:
            raise ValueError("normalise must hold at least one of true and false, got an empty list")
        size = getattr(self.source, "size", self.model_spec.size)
        if self.model_spec.size != size:
            raise ValueError(
                f"data.size must be the side of the model's input, {self.model_spec.size}, got {size}; leave it out"
            )
        for name, detector in self.detectors.items():
            if missing := [package for package in detector.packages if find_spec(package) is None]:
                raise ValueError(f"detector={name} needs the package {missing[0]}: {INSTALL}")
        if not getattr(self.source, "has_captions", True):
            self._check_without_captions()
        pairs = getattr(self.source, "pairs", None)
        if pairs is not None:
            self._check_for(pairs)

    def _check_without_captions(self) -> None:
        """Refuse attacks, detectors and trainings that need captions, where the data have none."""
        if self.attack.targets:
            raise ValueError(f"attack={self.attack.name} plants captions, and the data have none; use attack=none")
        looking = [name for name, detector in self.detectors.items() if _looks_at_captions(detector)]
        if looking:
            others = [name for name in self.detectors if name not in looking] or ["slof", "lof", "dao"]
            raise ValueError(
                f"detector={','.join(looking)} compares captions, and the data have none; choose those that look "
                f"at images only: 'detector=[{','.join(others)}]' (and neighbours.modality=image)"
            )
        if self.model_spec.trains:
            raise ValueError(
                "the data have no captions, so no model can be trained on them; give a trained one, such as "
                "model=rn50 model.checkpoint=clip.pt or model=trained model.folder=store/train/<key>"
            )

    def _check_for(self, pairs: int) -> None:
        """Refuse an attack that cannot be drawn for this number of pairs, or a scope with too few of them."""
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

    def replace(self, **changes: Any) -> Experiment:
        """Another experiment, in which these keys of the configuration differ: `train_on="clean"`,
        `data={"shards": [...]}` (merged into the group), or `model=DictConfig(...)` (in place of the group)."""
        config = copy.deepcopy(self.config)
        for key, value in changes.items():
            if isinstance(value, dict):
                for name, part in value.items():
                    OmegaConf.update(config, f"{key}.{name}", part, merge=False)
            else:
                OmegaConf.update(config, key, value, merge=False)
        return Experiment.of(config)

    # --- parts that follow from others --------------------------------------------------------------------------

    @property
    def decoder(self) -> str:
        return str(self.config.runtime.decoder)

    @property
    def threads(self) -> int | None:
        return self.config.runtime.threads

    @property
    def targets(self) -> list[str]:
        """The words that the attack aims at; without an attack, the word of the configuration."""
        return sorted({self.target, *self.attack.targets.values()})

    @property
    def patch_trigger(self) -> Trigger | None:
        """The trigger whose patch the attacker optimises on a model of clean data."""
        return self.attack.unoptimised

    @property
    def patch_target(self) -> str | None:
        """The target of that trigger."""
        return None if self.patch_trigger is None else self.attack.targets[self.patch_trigger.name]

    def specs(self) -> Iterator[ScoreSpec]:
        """Each detector on normalised and on raw embeddings; once where the norm makes no difference."""
        for name, detector in self.detectors.items():
            for flag in self.config.normalise if detector.norm_sensitive else [None]:
                yield ScoreSpec(name, flag)

    def detector(self, spec: ScoreSpec) -> Any:
        detector = self.detectors[spec.detector]
        return detector if spec.normalise is None else dataclasses.replace(detector, normalise=spec.normalise)  # type: ignore[call-arg]

    def table_width(self, search: NeighbourSearch) -> int:
        """The k of the table that serves all detectors that search alike."""
        detectors = [self.detector(spec) for spec in self.specs()]
        return max(d.table_width for d in detectors if isinstance(d, LocalDetector) and d.search == search)

    @property
    def labels(self) -> dict[str, Any]:
        """The columns that describe the experiment in every row of the results."""
        return {
            "attack": self.attack.name,
            "rate": self.attack.rate,
            "captions": self.attack.captions,
            "target": ", ".join(sorted(set(self.attack.targets.values()))),
            "data": self.source.name,
            "test_set": self.test_source.name,
            "model": getattr(self.model_spec, "name", self.model_spec.kind),
            "scale": self.config.scale.name,
            "train_on": self.train_on,
            "epochs": self.training.epochs if self.model_spec.trains else 0,
            "seed": self.seed,
        }

    # --- what of a part belongs to a key ------------------------------------------------------------------------

    def identity(self, part: str) -> Any:
        """Everything that can change the effect of `part`, as plain JSON values."""
        if part not in self._identities:
            self._identities[part] = self._identify(part)
        return self._identities[part]

    @functools.cached_property
    def _identities(self) -> dict[str, Any]:
        return {}

    def _identify(self, part: str) -> Any:
        match part:
            case "attack":
                files = {path: file_digest(path) for path in self.attack.files}
                packages = package_versions([type(self.attack), *map(type, self.attack.triggers)])
                versions = self.attack.versions | packages
                return {"attack": self._resolved("attack"), "files": files, "versions": versions}
            case "source":
                return self._source("data", self.source)
            case "test_source":
                return self._source("eval", self.test_source)
            case "model_spec":
                return self._model()
            case "training":
                device = distributed.device(self.config.runtime.device)
                precision = {"precision": self.training.resolved_precision(device)}
                processes = {} if self.training.sync_batch_norm else {"processes": distributed.world_size()}
                return self._training() | precision | processes
            case "threads":  # on a GPU they make no difference
                device = distributed.device(self.config.runtime.device)
                return (self.threads or os.cpu_count()) if device == "cpu" else None
            case "detector":
                return None  # of one call: see the stage
            case "patch_trigger":
                trigger = self.patch_trigger
                return None if trigger is None else dataclasses.asdict(trigger) | {"version": trigger.version}
        return getattr(self, part)

    def _resolved(self, group: str) -> dict[str, Any]:
        resolved = OmegaConf.to_container(self.config[group], resolve=True)
        assert isinstance(resolved, dict)
        return {str(key): value for key, value in resolved.items()}

    def detector_versions(self, spec: ScoreSpec) -> dict[str, Any]:
        """Versions of the code that computes the scores, and of the package that the detector comes from."""
        detector = self.detector(spec)
        return detector.versions() | package_versions([type(detector)])

    def detector_identity(self, spec: ScoreSpec) -> dict[str, Any]:
        # The class is part of the configuration (`_target_`).
        config = self._resolved("detector")[spec.detector] | {"normalise": spec.normalise}
        config.pop("memory_mb", None)  # changes no score
        return config

    def search_identity(self, search: NeighbourSearch, k: int) -> dict[str, Any]:
        # A wider exact table serves a smaller k (see `Stage.wider`), an approximate one has other neighbours.
        return {"search": search.identity} | ({} if search.serves(k + 1, k) else {"k": k})

    def _source(self, group: str, source: Any) -> dict[str, Any]:
        """For data outside the store: their configuration, and a fingerprint of the files that it names."""
        config = self._resolved(group)
        config.pop("name", None)  # a label
        config.pop("max_damaged", None)  # a higher limit lets a refused build continue
        if hasattr(source, "fingerprint"):
            config["fingerprint"] = source.fingerprint()
        return config

    def _training(self) -> dict[str, Any]:
        """The training's configuration; a file that it reads is identified by its content, not by its path."""
        config = self._resolved("train")
        if files := getattr(self.training.augment, "files", ()):
            config["augment"] = config["augment"] | {"trigger": file_digest(files[0])}
        return config

    def _model(self) -> dict[str, Any]:
        """The model's configuration without paths, and the names and digests of its files."""
        files = {Path(path).name: file_digest(path) for path in self.model_spec.files}
        return {"model": self.model_spec.without_paths(self._resolved("model")), "files": files}


def _looks_at_captions(detector: Detector) -> bool:
    joint = isinstance(detector, LocalDetector) and detector.modality == "joint"
    return joint or bool(detector.needs & {"text", "captions", "losses"})


def own_test_set(experiment: Experiment) -> str | None:
    """ "own_test" where the zero-shot images are those that the data bring along."""
    return "own_test" if isinstance(experiment.test_source, Builtin) else None
