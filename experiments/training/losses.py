"""The losses of CLIP's training, `train/loss=clip|siglip|cyclip|cleanclip`. Losses that keep a state are in
`stateful_losses`.

Each loss sees the features of the whole global batch, gathered from all processes with their gradients, so
that its value and its gradients are those of one process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from experiments.runtime import distributed

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Features:
    """Unit-length features of B pairs, (B, d) each, with the logits' scale and, for SigLIP, bias.

    second_image, second_text: features of an augmented version of every pair, where the loss asks for it.
    """

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor | None = None
    second_image: Tensor | None = None
    second_text: Tensor | None = None

    def each(self, change: Any) -> Features:
        """`change` applied to every tensor."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Features(**{name: None if part is None else change(part) for name, part in parts.items()})

    def rows(self) -> dict[str, Tensor]:
        """The tensors with a row for each sample."""
        named = {name: getattr(self, name) for name in ("image", "text", "second_image", "second_text")}
        return {name: part for name, part in named.items() if part is not None}


def gather(features: Features) -> Features:
    """This process's rows -> those of the global batch in its order, on every process.

    Process r of w holds rows r, r + w, ... The gradient of each process's own rows is the sum over what all
    processes do with them, which DistributedDataParallel's mean over processes makes exact.
    """
    if distributed.world_size() == 1:
        return features
    from experiments.training.collectives import rows_of

    whole = {name: rows_of(part) for name, part in features.rows().items()}
    return Features(scale=features.scale, bias=features.bias, **whole)


AugmentedViews = bool | Literal["only"]


class Loss(Protocol):
    """A loss of the global batch. bias: the logits need one.

    augmented_views: it compares each sample with a second, augmented view of it; "only": it sees the augmented view
    in place of the sample.
    """

    bias: ClassVar[bool]
    augmented_views: ClassVar[AugmentedViews]

    def __call__(self, features: Features) -> Tensor: ...


@dataclass(frozen=True)
class CLIPLoss:
    """open_clip's ClipLoss: the mean of the two cross-entropies of image -> text and text -> image."""

    bias: ClassVar[bool] = False
    augmented_views: ClassVar[AugmentedViews] = False

    def __call__(self, features: Features) -> Tensor:
        from open_clip.loss import ClipLoss

        return ClipLoss()(features.image, features.text, features.scale, features.bias)


@dataclass(frozen=True)
class SigLIPLoss:
    """open_clip's SigLipLoss: every pair of the batch is a yes-or-no question (Zhai et al., ICCV 2023).

    start: initial values of the logarithm of the logits' scale and of their bias, the paper's ln 10 and -10.
    """

    bias: ClassVar[bool] = True
    augmented_views: ClassVar[AugmentedViews] = False
    start: ClassVar[tuple[float, float]] = (math.log(10), -10.0)

    def __call__(self, features: Features) -> Tensor:
        from open_clip.loss import SigLipLoss

        return SigLipLoss()(features.image, features.text, features.scale, features.bias)


@dataclass(frozen=True)
class CyCLIPLoss:
    """CLIP's loss and two consistency terms (Goel et al., CyCLIP, NeurIPS 2022, section 2).

    cross_modal * 1/N sum_jk (<I_j, T_k> - <I_k, T_j>)^2 + in_modal * 1/N sum_jk (<I_j, I_k> - <T_j, T_k>)^2
    """

    bias: ClassVar[bool] = False
    augmented_views: ClassVar[AugmentedViews] = False

    cross_modal: float = 0.25
    in_modal: float = 0.25

    def __post_init__(self) -> None:
        _require_weights(self)

    def __call__(self, features: Features) -> Tensor:
        image, text = features.image, features.text
        across = image @ text.T
        cross_modal = (across - across.T).square().sum() / len(image)
        in_modal = (image @ image.T - text @ text.T).square().sum() / len(image)
        return CLIPLoss()(features) + self.cross_modal * cross_modal + self.in_modal * in_modal


@dataclass(frozen=True)
class CleanCLIPLoss:
    """CLIP's loss and self-supervision in each modality (Bansal et al., CleanCLIP, ICCV 2023, section 3).

    A sample's image must be nearest to its own augmented view among those of the batch, and likewise its text:
    clip * L_CLIP + own * 1/2 (CE(scale <I_j, I~_k>) + CE(scale <T_j, T~_k>))
    """

    bias: ClassVar[bool] = False
    augmented_views: ClassVar[AugmentedViews] = True

    clip: float = 1.0
    own: float = 1.0

    def __post_init__(self) -> None:
        _require_weights(self)

    def __call__(self, features: Features) -> Tensor:
        import torch
        from torch.nn import functional as F

        if features.second_image is None or features.second_text is None:
            raise ValueError("CleanCLIP's loss needs an augmented view of every image and text")
        labels = torch.arange(len(features.image), device=features.image.device)
        images = F.cross_entropy(features.scale * features.image @ features.second_image.T, labels)
        texts = F.cross_entropy(features.scale * features.text @ features.second_text.T, labels)
        return self.clip * CLIPLoss()(features) + self.own * (images + texts) / 2


LOSSES: dict[str, type[Any]] = {
    "clip": CLIPLoss,
    "siglip": SigLIPLoss,
    "cyclip": CyCLIPLoss,
    "cleanclip": CleanCLIPLoss,
}


def named(loss: Any) -> Any:
    """The loss itself, or the loss of that name with its default weights."""
    if not isinstance(loss, str):
        return loss
    if loss not in LOSSES:
        raise ValueError(f"train.loss must be one of {', '.join(LOSSES)}, got {loss!r}")
    return LOSSES[loss]()


def sample_losses(features: Features) -> Tensor:
    """Contrastive loss of each sample in its global batch, (B,): the mean of its two cross-entropies."""
    logits = features.scale.detach() * features.image.detach() @ features.text.detach().T  # (B, B)
    own = logits.diagonal()
    return ((logits.logsumexp(dim=1) - own) + (logits.logsumexp(dim=0) - own)) / 2


def _require_weights(loss: Any) -> None:
    for field in fields(loss):
        if getattr(loss, field.name) < 0:
            raise ValueError(f"train.loss.{field.name} must be 0 or more, got {getattr(loss, field.name)}")
