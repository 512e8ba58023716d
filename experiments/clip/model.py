"""CLIP models: which to build, and the noun that later stages read.

A *model specification* (`SmallCLIP`, `OpenCLIP`) is what `conf/model/*.yaml` names; `build` turns it into a
`TrainedModel`, whose folder holds weights (safetensors) and everything needed to use them: architecture,
vocabulary, and the preprocessing. The folder of an `OpenCLIP` is one that open_clip itself opens:
`open_clip.create_model("local-dir:<folder>")`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from experiments.clip.checkpoints import load_checkpoint, native_size, published, require_architecture
from experiments.clip.tokenizer import CompactTokenizer

log = logging.getLogger(__name__)

WEIGHTS, DESCRIPTION, ARCHITECTURE = "weights.safetensors", "model.json", "open_clip_config.json"

STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "openai": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Channel means and standard deviations that go by a name, as `model.mean=openai`."""


@dataclass(frozen=True)
class TrainedModel:
    """A CLIP model with its tokenizer and preprocessing; also the `encoder` that detectors may be given.

    `spec` is what was built: its size and its mean and standard deviation are what every later stage uses.
    """

    clip: nn.Module
    tokenizer: Callable[[Sequence[str]], Tensor]
    spec: SmallCLIP | OpenCLIP

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
        """What `save` has written, on `device` and in evaluation mode; needs no network."""
        from safetensors.torch import load_file

        description = json.loads((folder / DESCRIPTION).read_text())
        model = SPECIFICATIONS[description["kind"]](**description["spec"]).restore(folder, description)
        state = load_file(folder / WEIGHTS)
        if "logit_bias" in state:
            model.add_bias(0.0, 0.0)
        model.clip.load_state_dict(state)
        model.clip.to(device).eval()
        return model


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
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise ValueError(f"model.checkpoint must be a file, but there is no {self.checkpoint!r}")
        if self.name.startswith("local-dir:") and not (Path(self._source) / ARCHITECTURE).is_file():
            raise ValueError(f"model.name: the folder {self._source!r} holds no {ARCHITECTURE}")
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

    def build(self, texts: Iterable[str]) -> TrainedModel:
        """The model, freshly initialised or with the weights named; `texts` is not used."""
        import open_clip

        native = native_size(self.name)
        force = None if native == self.size else self.size
        if force and native and self._weights:
            log.warning("model: %s is made for %d pixels; its positions are interpolated to %d",
                        self.name, native, force)  # fmt: skip
        with self._fetching(), _quiet():
            clip = open_clip.create_model(
                self.name,
                pretrained=self.pretrained,
                force_image_size=force,
                pretrained_text=False,
                require_pretrained=self._brings_weights or self.pretrained is not None,
                weights_only=True,
            )
            tokenizer = open_clip.get_tokenizer(self.name)
        if self.checkpoint is not None:
            load_checkpoint(clip, self.checkpoint)
            if self.mean == "auto":
                log.warning(
                    "model: %s is fed images in [0, 1] as they are, as in the paper's protocol; weights trained "
                    "with open_clip's own script need model.mean=openai", self.checkpoint,
                )  # fmt: skip
        published_with = (None, None)
        if self._brings_weights or self.pretrained is not None:
            cfg = clip.visual.preprocess_cfg
            published_with = cfg["mean"], cfg["std"]
            if cfg.get("resize_mode", "shortest") != "shortest":
                log.warning("model: %s was trained on images resized by %r; here the shorter side is resized and "
                            "the centre cropped", self._weights, cfg["resize_mode"])  # fmt: skip
        mean, std = self._statistics(published_with)
        built = dataclasses.replace(self, mean=mean, std=std)
        return TrainedModel(clip.to(memory_format=torch.channels_last), tokenizer, built)

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
        """(mean, std) with names resolved and `auto` filled in; None for those that change nothing."""
        resolved = []
        for which, given in enumerate((self.mean, self.std if self.std != "auto" else self.mean)):
            label = ("mean", "std")[which]
            if given == "auto":
                given = auto[which]
            elif isinstance(given, str):
                if given not in STATISTICS:
                    choices = ", ".join(["auto", *STATISTICS])
                    raise ValueError(
                        f"model.{label} must be three numbers, null or one of {choices}, got {given!r}"
                    )
                given = STATISTICS[given][which]
            elif which and self.std == "auto" and given is not None:
                raise ValueError("model.std must be given where model.mean is three numbers")
            if given is not None and len(given) != 3:
                raise ValueError(f"model.{label} must be three numbers, got {given!r}")
            resolved.append(None if given is None else tuple(float(x) for x in given))
        if (resolved[0] is None) != (resolved[1] is None):
            raise ValueError(f"model.mean and model.std go together, got {self.mean!r} and {self.std!r}")
        return (None, None) if resolved == [(0.0,) * 3, (1.0,) * 3] else (resolved[0], resolved[1])

    def describe(self, model: TrainedModel, folder: Path) -> dict[str, Any]:
        """Write the architecture as open_clip reads it from a folder; what was loaded from where."""
        import open_clip

        cfg = open_clip.get_model_config(self.name)
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
        import open_clip

        with _quiet():
            clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
            named = f"local-dir:{folder}" if self._brings_weights else self.name
            tokenizer = open_clip.get_tokenizer(named)
        return TrainedModel(clip.to(memory_format=torch.channels_last), tokenizer, self)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """open_clip writes a dozen lines on the root logger for each model, a warning for those to be trained."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


SPECIFICATIONS: dict[str, Any] = {spec.kind: spec for spec in (SmallCLIP, OpenCLIP)}
