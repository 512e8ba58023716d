"""CLIP models: which to build, and the noun that later stages read.

A *model specification* (`SmallCLIP`, `OpenCLIP`) is what `conf/model/*.yaml` names; `build` turns it into a
`TrainedModel`, whose folder holds weights (safetensors) and everything needed to use them: architecture,
vocabulary, and the preprocessing. The folder of an `OpenCLIP` is one that open_clip itself opens:
`open_clip.create_model("local-dir:<folder>")`.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.clip.channel_statistics import channel_statistics
from experiments.clip.checkpoint_files import read_state_dict, refuse_other_files
from experiments.clip.checkpoints import fill, load_checkpoint, native_size, published, require_architecture
from experiments.clip.model_folder import (
    ARCHITECTURE,
    check_folder,
    find_weights,
    no_remote_code,
    read_json,
)
from experiments.clip.open_clip_building import architecture_of, create, create_tokenizer, quiet, require_packages
from experiments.clip.tokenizer import CompactTokenizer

log = logging.getLogger(__name__)

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"

SMALL_LIMITS = {
    **dict.fromkeys(("embed_dim", "text_width"), 4_096),
    **dict.fromkeys(("size", "context_length", "patch"), 1_024),
    **{"text_layers": 64, "text_heads": 256, "blocks": 64},
}
"""The largest sizes of a `SmallCLIP`."""


@dataclass(frozen=True)
class TrainedModel:
    """A CLIP model with its tokenizer and preprocessing; also the `encoder` that detectors may be given.

    `spec` is what was built: its size and its mean and standard deviation are what every later stage uses.
    `architecture` is open_clip's description of it, where it has one.
    """

    clip: nn.Module
    tokenizer: Callable[[Sequence[str]], Tensor]
    spec: SmallCLIP | OpenCLIP
    architecture: Mapping[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        return next(self.clip.parameters()).device

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (b, size, size, 3) on any device -> float32 (b, 3, size, size) in [0, 1] on the model's."""
        return images.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)

    def standardise(self, x: Tensor) -> Tensor:
        """Apply the mean and standard deviation the model was trained with (the paper's protocol has none)."""
        if self.spec.mean is None or self.spec.std is None:
            return x
        mean = x.new_tensor(self.spec.mean).view(1, 3, 1, 1)
        std = x.new_tensor(self.spec.std).view(1, 3, 1, 1)
        return (x - mean) / std

    def image(self, x: Tensor) -> Tensor:
        """(b, 3, size, size) in [0, 1] -> un-normalised embeddings (b, d)."""
        x = self.standardise(x).contiguous(memory_format=torch.channels_last)
        return self.clip.encode_image(x)  # type: ignore[operator]

    def text(self, texts: Sequence[str] | Tensor) -> Tensor:
        """m texts, or their tokens (m, context) -> un-normalised embeddings (m, d)."""
        tokens = texts if isinstance(texts, Tensor) else self.tokenizer(texts)
        return self.clip.encode_text(tokens.to(self.device))  # type: ignore[operator]

    def add_bias(self, scale: float, bias: float) -> None:
        """Give the logits a learnable bias, which SigLIP's loss needs, and the scale it starts with."""
        if self.clip.logit_bias is None:
            self.clip.logit_bias = nn.Parameter(torch.full_like(self.clip.logit_scale, bias))  # type: ignore[arg-type]
            with torch.no_grad():
                self.clip.logit_scale.fill_(scale)  # type: ignore[union-attr, operator]

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        state = {name: tensor.contiguous() for name, tensor in self.clip.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        description: dict[str, Any] = {"kind": self.spec.kind, "spec": dataclasses.asdict(self.spec)}
        description |= self.spec.describe(self, folder)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))

    @classmethod
    def load(cls, folder: Path, device: str | torch.device = "cpu") -> TrainedModel:
        """What `save` has written, on `device` and in evaluation mode; needs no network.

        Raises ValueError for a folder that is damaged, or asks for what `experiments.clip.model_folder` forbids.
        """
        description = read_description(folder)
        state = read_state_dict(folder / WEIGHTS, "model.folder")
        try:
            spec = SPECIFICATIONS[description["kind"]](**description["spec"])
            model = spec.restore(folder, description)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"model.folder: {folder / DESCRIPTION} describes no model: {error!r}") from None
        if "logit_bias" in state:
            model.add_bias(0.0, 0.0)
        fill(model.clip, state, f"model.folder: {folder / WEIGHTS}")
        model.clip.to(device).eval()
        return model


def read_description(folder: Path) -> dict[str, Any]:
    """`model.json` of a model folder whose configurations have been checked; ValueError names what is wrong."""
    check_folder(folder, "model.folder")
    description = read_json(folder / DESCRIPTION, "model.folder")
    kind, spec = description.get("kind"), description.get("spec")
    if not isinstance(kind, str) or kind not in SPECIFICATIONS or not isinstance(spec, dict):
        raise ValueError(
            f"model.folder: {folder / DESCRIPTION} must name a kind ({', '.join(SPECIFICATIONS)}) and its spec, "
            f"got {str(kind)[:80]!r}"
        )
    if kind == OpenCLIP.kind:
        if str(spec.get("name")).startswith("local-dir:"):
            raise ValueError(f"model.folder: {folder / DESCRIPTION} names another folder, {spec['name'][:80]!r}")
        spec |= {"pretrained": None, "checkpoint": None, "finetune": False}  # all that it needs lies in the folder
    return description


@dataclass(frozen=True)
class SmallCLIP:
    """An open_clip CLIP of about 2 M parameters with the tower of `experiments/clip/small_tower.py`.

    size: side of the input image in pixels.  context_length: tokens a caption may have.
    patch: side in pixels of the patches of a Vision Transformer, which then takes the tower's place.
    blocks: in each of the four stages of open_clip's ResNet (RN50 has 3, 4, 6, 3), a quarter as wide, likewise.
    """

    kind: ClassVar[str] = "small"
    trains: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ()

    embed_dim: int = 128
    size: int = 32
    text_width: int = 128
    text_layers: int = 1
    text_heads: int = 4
    context_length: int = 16
    patch: int | None = None
    blocks: Sequence[int] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.patch is not None and self.blocks is not None:
            raise ValueError(
                f"model.patch={self.patch} asks for a Vision Transformer, model.blocks={self.blocks} for a ResNet"
            )
        if self.blocks is not None:
            object.__setattr__(self, "blocks", [int(count) for count in self.blocks])
        for name, limit in SMALL_LIMITS.items():
            for value in self.blocks or () if name == "blocks" else [getattr(self, name)]:
                if value is not None and not (isinstance(value, int) and 1 <= value <= limit):
                    raise ValueError(f"model.{name} must lie in 1..{limit:,}, got {value!r}")

    @property
    def name(self) -> str:
        if self.blocks is not None:
            return f"{self.kind}_resnet"
        return self.kind if self.patch is None else f"{self.kind}_vit"

    def build(self, texts: Iterable[str]) -> TrainedModel:
        """A freshly initialised model whose vocabulary covers `texts` (torch's global generator is drawn from)."""
        return self.assemble(CompactTokenizer.from_texts(texts, self.context_length).vocabulary)

    def assemble(self, vocabulary: Sequence[int]) -> TrainedModel:
        import open_clip

        from experiments.clip.small_tower import ConvTower

        tokenizer = CompactTokenizer(vocabulary, self.context_length)
        text = {
            "context_length": self.context_length,
            "vocab_size": tokenizer.vocab_size,
            "width": self.text_width,
            "heads": self.text_heads,
            "layers": self.text_layers,
        }
        # What the convolutional tower takes the place of.
        vision: dict[str, Any] = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
        if self.patch is not None:
            vision = {"layers": 4, "width": 128, "head_width": 32, "image_size": self.size}
            vision["patch_size"] = self.patch
        elif self.blocks is not None:
            vision = {"layers": list(self.blocks), "width": 16, "image_size": self.size}
        clip = open_clip.CLIP(self.embed_dim, vision, text)
        if self.patch is None and self.blocks is None:
            clip.visual = ConvTower(self.embed_dim, self.size)
        return TrainedModel(clip.to(memory_format=torch.channels_last), tokenizer, self)

    def without_paths(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as part of a key."""
        return config

    def describe(self, model: TrainedModel, folder: Path) -> dict[str, Any]:
        assert isinstance(model.tokenizer, CompactTokenizer)
        return {"vocabulary": model.tokenizer.vocabulary}

    def restore(self, folder: Path, description: dict[str, Any]) -> TrainedModel:
        return self.assemble(description["vocabulary"])


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
            raise ValueError(f"model.{given[0]} must be left out, for model.name={self.name} brings weights along")
        if len(given) > 1:
            raise ValueError("model.pretrained and model.checkpoint exclude each other")
        if self.checkpoint is not None:
            refuse_other_files(Path(self.checkpoint))
        if self.name.startswith("local-dir:"):
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
        return self.name.startswith(("hf-hub:", "local-dir:"))

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
        if self.name.startswith("local-dir:"):
            endings = (".json", ".safetensors", ".bin", ".pth", ".pt", ".txt")
            return tuple(sorted(str(f) for f in Path(self._source).iterdir() if f.suffix in endings))
        return () if self.checkpoint is None else (self.checkpoint,)

    def without_paths(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as part of a key: of local weights the content counts, not where they lie."""
        name = "local-dir:" if self.name.startswith("local-dir:") else self.name
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
                    "model: %s is fed images in [0, 1] as they are, as in the paper's protocol; weights trained "
                    "with open_clip's own script need model.mean=openai",
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
        if self.name.startswith("local-dir:"):
            return find_weights(Path(self._source), "model.name")
        from open_clip.pretrained import download_pretrained_from_hf

        return download_pretrained_from_hf(self._source)

    def _fetching(self) -> contextlib.AbstractContextManager[None]:
        if self.name.startswith("hf-hub:"):
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
        return "hf-hub:local" if self._brings_weights else self.name

    def restore(self, folder: Path, description: dict[str, Any]) -> TrainedModel:
        architecture = read_json(folder / ARCHITECTURE, "model.folder")["model_cfg"]
        with quiet(), no_remote_code("model.folder"):
            clip = create(f"local-dir:{folder}", load_weights=False)
            tokenizer = create_tokenizer(f"local-dir:{folder}" if self._brings_weights else self.name, architecture)
        return TrainedModel(clip.to(memory_format=torch.channels_last), tokenizer, self, architecture)


SPECIFICATIONS: dict[str, Any] = {spec.kind: spec for spec in (SmallCLIP, OpenCLIP)}
