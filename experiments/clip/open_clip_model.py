"""`model=rn50|vit_b16|pretrained|...`: any model of open_clip, to be trained or with weights that exist."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from experiments.clip.channel_statistics import channel_statistics
from experiments.clip.checkpoint_files import refuse_other_files
from experiments.clip.checkpoints import load_checkpoint, published
from experiments.clip.model import TrainedModel
from experiments.clip.model_folder import ARCHITECTURE, check_folder, find_weights, no_remote_code, read_json
from experiments.clip.open_clip_building import create, create_tokenizer, quiet, require_packages
from experiments.clip.open_clip_metadata import HUB, LOCAL, architecture_of, native_size, require_architecture

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenCLIP:
    """Any architecture of open_clip, to be trained or with weights that exist.

    name: one of open_clip's architectures; `hf-hub:<owner>/<repository>` or `local-dir:<folder>`, which bring
        weights along.
    size: side of the input image in pixels.
    pretrained: one of open_clip's tags for that architecture.
    checkpoint: a local file: open_clip's .pt, safetensors, or a state dict such as those of Huang et al. (2025).
    finetune: train on from those weights; otherwise a model with weights is used as it is.
    mean, std: channel statistics of the images in [0, 1]: three numbers each, a name (`model.mean=openai`), or
        None for none (the paper's protocol). `auto`: those published with the tag or repository; none for a
        model that is trained here and for a local checkpoint.
    """

    kind: ClassVar[str] = "open_clip"

    name: str = "RN50"
    size: int = 224
    pretrained: str | None = None
    checkpoint: str | None = None
    finetune: bool = False
    mean: Sequence[float] | str | None = "auto"
    std: Sequence[float] | str | None = "auto"

    def __post_init__(self) -> None:
        require_architecture(self.name)
        if self.size < 1:
            raise ValueError(f"model.size must be at least 1, got {self.size}")
        given = [name for name in ("pretrained", "checkpoint") if getattr(self, name) is not None]
        if self._brings_weights and given:
            raise ValueError(
                f"model.{given[0]} must be left out, because model.name={self.name} brings weights along"
            )
        if len(given) > 1:
            raise ValueError("model.pretrained and model.checkpoint exclude each other")
        if self.checkpoint is not None:
            refuse_other_files(Path(self.checkpoint))
        if self.name.startswith(LOCAL):
            if not (Path(self._source) / ARCHITECTURE).is_file():
                raise ValueError(f"model.name: the folder {self._source!r} holds no {ARCHITECTURE}")
            check_folder(Path(self._source), "model.name")
            refuse_other_files(find_weights(Path(self._source), "model.name"), "model.name")
        require_packages(self.name)
        if self.finetune and self._weights is None:
            raise ValueError("model.finetune needs weights to start from: model.pretrained or model.checkpoint")
        if self.pretrained is not None:
            from open_clip import list_pretrained_tags_by_model

            tags = list_pretrained_tags_by_model(self.name.replace("/", "-"))
            if self.pretrained not in tags:
                raise ValueError(
                    f"model.pretrained must be a tag of {self.name} ({', '.join(tags) or 'it has none'}), "
                    f"got {self.pretrained!r}; a file goes to model.checkpoint"
                )
        self._statistics((None, None))

    @property
    def _brings_weights(self) -> bool:
        return self.name.startswith((HUB, LOCAL))

    @property
    def _source(self) -> str:
        return self.name.partition(":")[2]

    @property
    def _weights(self) -> str | None:
        return self.name if self._brings_weights else self.checkpoint or self.pretrained

    @property
    def trains(self) -> bool:
        return self._weights is None or self.finetune

    @property
    def files(self) -> tuple[str, ...]:
        """Local files whose content decides the result."""
        if self.name.startswith(LOCAL):
            endings = (".json", ".safetensors", ".bin", ".pth", ".pt", ".txt")
            return tuple(sorted(str(f) for f in Path(self._source).iterdir() if f.suffix in endings))
        return () if self.checkpoint is None else (self.checkpoint,)

    def without_paths(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as part of a key: local weights count by their content, not by their place."""
        name = LOCAL if self.name.startswith(LOCAL) else self.name
        return config | {"name": name, "checkpoint": self.checkpoint and Path(self.checkpoint).name}

    def build(self, texts: Iterable[str]) -> TrainedModel:
        """The model, freshly initialised or with the weights named; `texts` is not used."""

        native = native_size(self.name)
        force = None if native == self.size else self.size
        if force and native and self._weights:
            log.warning(
                "model: %s is made for %d pixels; its positions are interpolated to %d", self.name, native, force
            )
        with self._fetching(), quiet(), no_remote_code(f"model.name={self.name}"):
            architecture = architecture_of(self.name)
            clip = create(
                self.name,
                pretrained=self.pretrained,
                force_image_size=force,
                load_weights=self.pretrained is not None,
                require_pretrained=self.pretrained is not None,
            )
            tokenizer = create_tokenizer(self.name, architecture)
            if self._brings_weights:
                load_checkpoint(clip, self._fetched_weights(), "model.name")
        if self.checkpoint is not None:
            load_checkpoint(clip, self.checkpoint)
            if self.mean == "auto":
                log.warning(
                    "model: %s gets images in [0, 1] without mean and std, as in the paper's protocol; weights "
                    "trained with open_clip's own script need model.mean=openai",
                    self.checkpoint,
                )
        published_with = (None, None)
        if self._brings_weights or self.pretrained is not None:
            cfg = clip.visual.preprocess_cfg
            published_with = cfg["mean"], cfg["std"]
            if cfg.get("resize_mode", "shortest") != "shortest":
                log.warning(
                    "model: %s was trained on images resized by %r; here the shorter side is resized and "
                    "the centre cropped",
                    self._weights,
                    cfg["resize_mode"],
                )
        mean, std = self._statistics(published_with)
        built = dataclasses.replace(self, mean=mean, std=std)
        return TrainedModel(clip.to(memory_format=torch.channels_last), tokenizer, built, architecture)

    def _fetched_weights(self) -> str | Path:
        if self.name.startswith(LOCAL):
            return find_weights(Path(self._source), "model.name")
        from open_clip.pretrained import download_pretrained_from_hf

        return download_pretrained_from_hf(self._source)

    def _fetching(self) -> contextlib.AbstractContextManager[None]:
        if self.name.startswith(HUB):
            return published(f"model.name={self.name}")
        if self.pretrained is not None:
            from open_clip.pretrained import get_pretrained_cfg

            cfg = get_pretrained_cfg(self.name.replace("/", "-"), self.pretrained)
            url = "" if cfg.get("hf_hub") else cfg.get("url", "")
            return published(f"model.pretrained={self.pretrained} of {self.name}", url)
        return contextlib.nullcontext()

    def _statistics(self, auto: tuple[Any, Any]) -> tuple[Any, Any]:
        return channel_statistics(self.mean, self.std, auto)

    def describe(self, model: TrainedModel, folder: Path) -> dict[str, Any]:
        """Write the architecture as open_clip reads it from a folder; what was loaded from where."""
        cfg = copy.deepcopy(dict(model.architecture or {}))
        cfg["vision_cfg"]["image_size"] = self.size
        if model.clip.logit_bias is not None:
            cfg.setdefault("init_logit_bias", 0.0)
        mean, std = self.mean or (0.0,) * 3, self.std or (1.0,) * 3
        content = {"model_cfg": cfg, "preprocess_cfg": {"size": self.size, "mean": mean, "std": std}}
        (folder / ARCHITECTURE).write_text(json.dumps(content, indent=1))
        inner: Any = getattr(model.tokenizer, "tokenizer", None)
        if hasattr(inner, "save_pretrained"):  # a Hugging Face tokenizer
            inner.save_pretrained(folder)
        # A later stage needs neither the place the weights came from nor that it still exists.
        kept = dataclasses.replace(self, pretrained=None, checkpoint=None, finetune=False, name=self._portable)
        return {"spec": dataclasses.asdict(kept), "weights_from": self._weights}

    @property
    def _portable(self) -> str:
        """A name that can be checked anywhere."""
        return f"{HUB}local" if self._brings_weights else self.name

    def restore(self, folder: Path, description: dict[str, Any]) -> TrainedModel:
        architecture = read_json(folder / ARCHITECTURE, "model.folder")["model_cfg"]
        with quiet(), no_remote_code("model.folder"):
            clip = create(f"{LOCAL}{folder}", load_weights=False)
            tokenizer = create_tokenizer(f"{LOCAL}{folder}" if self._brings_weights else self.name, architecture)
        return TrainedModel(clip.to(memory_format=torch.channels_last), tokenizer, self, architecture)
