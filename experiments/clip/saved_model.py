"""A model folder that `TrainedModel.save` has written, read without a network and without trust in its content.

The folder of an `OpenCLIP` is one that open_clip itself opens: `open_clip.create_model("local-dir:<folder>")`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from experiments.clip.checkpoint_files import read_state_dict
from experiments.clip.checkpoints import fill
from experiments.clip.model import DESCRIPTION, WEIGHTS, TrainedModel
from experiments.clip.model_folder import check_folder, read_json
from experiments.clip.open_clip_model import OpenCLIP
from experiments.clip.small_clip import SmallCLIP

SPECIFICATIONS: dict[str, Any] = {spec.kind: spec for spec in (SmallCLIP, OpenCLIP)}


def load_model(folder: Path, device: str | torch.device = "cpu") -> TrainedModel:
    """The model on `device`, in evaluation mode.

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
