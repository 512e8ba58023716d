"""`model=small|small_vit|small_resnet`: a CLIP of about 2 M parameters, for the bundled data on a CPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from experiments.clip.model import TrainedModel

SMALL_LIMITS = {
    **dict.fromkeys(("embed_dim", "text_width"), 4_096),
    **dict.fromkeys(("size", "context_length", "patch"), 1_024),
    **{"text_layers": 64, "text_heads": 256, "blocks": 64},
}
"""The largest sizes of a `SmallCLIP`."""


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
        from experiments.clip.tokenizer import CompactTokenizer

        return self.assemble(CompactTokenizer.from_texts(texts, self.context_length).vocabulary)

    def assemble(self, vocabulary: Sequence[int]) -> TrainedModel:
        import open_clip
        import torch

        from experiments.clip.model import TrainedModel
        from experiments.clip.short_attention import use_short_attention
        from experiments.clip.small_tower import ConvTower
        from experiments.clip.tokenizer import CompactTokenizer

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
        use_short_attention(clip)
        return TrainedModel(clip.to(memory_format=torch.channels_last), tokenizer, self)

    def without_paths(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as part of a key."""
        return config

    def describe(self, model: TrainedModel, folder: Path) -> dict[str, Any]:
        from experiments.clip.tokenizer import CompactTokenizer

        assert isinstance(model.tokenizer, CompactTokenizer)
        return {"vocabulary": model.tokenizer.vocabulary}

    def restore(self, folder: Path, description: dict[str, Any]) -> TrainedModel:
        return self.assemble(description["vocabulary"])
