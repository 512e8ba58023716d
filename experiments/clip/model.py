"""The CLIP model that later stages read, and what a model specification has to offer.

A *model specification* (`SmallCLIP`, `OpenCLIP`, `Trained`) is what `conf/model/*.yaml` names; `build` makes it a
`TrainedModel`, whose folder holds weights (safetensors) and everything needed to use them: architecture,
vocabulary, and the preprocessing. `experiments.clip.saved_model` reads such a folder.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"


class ModelSpec(Protocol):
    """Which model to build. A frozen dataclass, whose fields `TrainedModel.save` writes down.

    mean, std: channel statistics of the images in [0, 1], as numbers once the model is built.
    """

    kind: ClassVar[str]

    @property
    def mean(self) -> Any: ...

    @property
    def std(self) -> Any: ...

    def build(self, texts: Iterable[str]) -> TrainedModel:
        """The model; its vocabulary covers `texts`."""
        ...

    def describe(self, model: TrainedModel, folder: Path) -> dict[str, Any]:
        """What `model.json` needs beside the specification; may write further files into the folder."""
        ...


@dataclass(frozen=True)
class TrainedModel:
    """A CLIP model with its tokenizer and preprocessing; also the `encoder` that detectors may be given.

    `spec` is what was built: its size and its mean and standard deviation are what every later stage uses.
    `architecture` is open_clip's description of it, where it has one.
    """

    clip: nn.Module
    tokenizer: Callable[[Sequence[str]], Tensor]
    spec: ModelSpec
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
        """Write the weights and `model.json`, for `experiments.clip.saved_model.load_model`."""
        from safetensors.torch import save_file

        state = {name: tensor.contiguous() for name, tensor in self.clip.state_dict().items()}
        save_file(state, folder / WEIGHTS)
        description: dict[str, Any] = {"kind": self.spec.kind, "spec": dataclasses.asdict(self.spec)}  # type: ignore[call-overload]
        description |= self.spec.describe(self, folder)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1))
