"""Existing weights: local checkpoints of several makers, and published ones without a long wait.

`experiments.clip.checkpoint_files` reads the files and runs no code of them.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from experiments.clip.checkpoint_files import read_state_dict
from experiments.clip.model_folder import RefusedModel

log = logging.getLogger(__name__)

TOWERS = {
    "vision_model.": "visual.",
    "vision.": "visual.",
    "image_encoder.": "visual.",
    "text_model.": "text.",
    "textual.": "text.",
    "text_encoder.": "text.",
}
"""Other people's names for open_clip's two towers, `visual` and `text`."""

BESIDE = ("model_ema.", "ema_model.", "ema.", "criterion.", "loss.", "loss_fn.", "metrics.")
"""What Lightning and others keep beside the model's own tensors, where those have no prefix."""

CONSTANTS = ("attn_mask", "position_ids")
"""Buffers that older versions saved and that no longer belong to a model."""


def fit_names(state: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """Rename the tensors to the names a model wants, where only a prefix and tower names differ.

    The prefix is the one under which most of the wanted names lie, such as `module.`, `clip_model.` or
    `model._orig_mod.`; tensors outside it are left out. Raises ValueError if two tensors get one name.
    """
    wanted = set(wanted)
    heads = {name.split(".")[0] for name in wanted} | {name.rstrip(".") for name in TOWERS}
    prefixes = {""}
    for name in state:
        parts = name.split(".")
        prefixes |= {".".join(parts[:i]) + "." for i in range(1, min(len(parts), 9)) if parts[i] in heads}
    choices = {prefix: _renamed(state, prefix, wanted) for prefix in sorted(prefixes, key=lambda p: (len(p), p))}

    def worth(prefix: str) -> tuple[int, bool]:
        return len(wanted & choices[prefix].keys()), not any(f".{x}" in f".{prefix}" for x in BESIDE)

    best = max(choices, key=worth)  # the shortest of equals
    return {name: state[old] for name, old in choices[best].items()}


def _renamed(state: Collection[str], prefix: str, wanted: set[str]) -> dict[str, str]:
    """Name in the model -> name in `state`, of the tensors whose names begin with `prefix`."""
    flat = not any(name.startswith("text.") for name in wanted)  # open_clip.CLIP; else CustomTextCLIP
    renamed: dict[str, str] = {}
    for old in state:
        if not old.startswith(prefix):
            continue
        name = old.removeprefix(prefix)
        if name.split(".")[-1] in CONSTANTS and name not in wanted:
            continue
        if not prefix and name.startswith(BESIDE) and name not in wanted:
            continue
        for theirs, ours in TOWERS.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        if flat:
            name = name.removeprefix("text.")
        elif not name.startswith(("visual.", "text.")) and f"text.{name}" in wanted:
            name = f"text.{name}"
        if name in renamed:
            raise ValueError(f"model.checkpoint: {renamed[name]!r} and {old!r} are both the model's {name!r}")
        renamed[name] = old
    return renamed


def load_checkpoint(clip: nn.Module, file: str | Path, label: str = "model.checkpoint") -> None:
    """Load a checkpoint into an open_clip model; a ValueError names what does not fit."""
    from open_clip.convert import convert_state_dict

    read = read_state_dict(file, label)
    if "logit_bias" in {name.split(".")[-1] for name in read} and getattr(clip, "logit_bias", "") is None:
        clip.logit_bias = nn.Parameter(torch.zeros_like(clip.logit_scale))  # type: ignore[arg-type]
    state = fit_names(convert_state_dict(clip, read), clip.state_dict())  # type: ignore[arg-type]
    if len(state) < len(read):
        left = len(read) - len(state)
        log.warning("%s: %d of %d tensors of %s do not belong to the model: left out", label, left, len(read), file)
    fill(clip, state, f"{label}: {file}", read)


def fill(clip: nn.Module, state: dict[str, Tensor], source: str, read: Mapping[str, Tensor] | None = None) -> None:
    """Load tensors that have the model's names, positions interpolated; a ValueError names what does not fit.

    read: the tensors before they were renamed, to say whether they are a single tower.
    """
    wanted = clip.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in wanted and state[name].numel() == wanted[name].numel():
            state[name] = state[name].reshape(wanted[name].shape)
        elif name == "logit_bias" and name in wanted:  # a softmax model's, to be trained on with SigLIP's loss
            state[name] = torch.zeros_like(wanted[name])
    _resize_positions(state, clip, wanted)
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    both = sorted(wanted.keys() & state.keys())
    shapes = [n for n in both if wanted[n].shape != state[n].shape]
    kinds = [n for n in both if wanted[n].is_floating_point() != state[n].is_floating_point()]
    broken = [n for n in both if state[n].is_floating_point() and not torch.isfinite(state[n]).all()]
    if (missing or shapes) and (tower := _single_tower(state if read is None else read, wanted)):
        raise ValueError(f"{source} holds {tower} only; images and captions need both towers of a CLIP model")
    found = {"missing": missing, "unknown": unknown, "of another shape": shapes, "of another type": kinds}
    found["with NaN or infinite values"] = broken
    problems = [f"{len(names)} {what}, such as {names[0][:80]}" for what, names in found.items() if names]
    if problems:
        raise ValueError(f"{source} does not fit model.name: tensors {'; '.join(problems)}")
    clip.load_state_dict(state)


def _resize_positions(state: dict[str, Tensor], clip: nn.Module, wanted: Mapping[str, Tensor]) -> None:
    """Interpolate position embeddings of another length, where they are (length, width) of the model's width."""
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    for name, resize in (
        ("visual.positional_embedding", resize_pos_embed),
        ("positional_embedding", resize_text_pos_embed),
        ("text.positional_embedding", resize_text_pos_embed),
    ):
        given, own = state.get(name), wanted.get(name)
        if given is None or own is None or given.ndim != 2 or own.ndim != 2 or given.shape[1] != own.shape[1]:
            continue
        if name.startswith("visual.") and (len(given) < 2 or math.isqrt(len(given) - 1) ** 2 != len(given) - 1):
            continue  # no square grid
        if len(given) != len(own) and len(given):
            state[name] = given.float()
            resize(state, clip)


def _single_tower(read: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Which tower alone the tensors are: "an image tower", "a text tower", or None."""
    image = {name.removeprefix("visual."): t for name, t in wanted.items() if name.startswith("visual.")}
    fitted = fit_names(read, wanted)
    names = {name for name in fitted if name in wanted and not name.startswith("logit_")}
    if any(name.startswith("visual.") for name in names):
        return "an image tower" if all(name.startswith("visual.") for name in names) else None
    bare = fit_names(read, image)  # as `visual.state_dict()` has it, whose names can be a text tower's
    as_image = sum(bare[name].shape == image[name].shape for name in bare.keys() & image.keys())
    if as_image > sum(fitted[name].shape == wanted[name].shape for name in names):
        return "an image tower"
    return "a text tower" if names else None


@contextmanager
def published(what: str, url: str = "") -> Iterator[None]:
    """Fetch published weights inside; without network it fails at once, unless they are in the cache.

    huggingface_hub retries for most of a minute before it gives up. Here its host is tried once, for three
    seconds; if that fails, its offline mode is used inside.
    """
    from huggingface_hub import constants

    endpoint = url or constants.ENDPOINT
    offline = constants.HF_HUB_OFFLINE
    unreachable = offline or not _reachable(endpoint)
    constants.HF_HUB_OFFLINE = unreachable
    try:
        if url and unreachable and not _in_open_clip_cache(url):
            raise ConnectionError("no network")
        yield
    except Exception as error:
        if not unreachable or isinstance(error, RefusedModel):
            raise
        why = "HF_HUB_OFFLINE is set" if offline else f"{urlparse(endpoint).hostname} cannot be reached"
        raise RuntimeError(
            f"{what} is not in this machine's cache and {why}. Fetch it on a machine with a network and copy its "
            "cache (HF_HOME), or give a local file as model.checkpoint"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _in_open_clip_cache(url: str) -> bool:
    return (Path("~/.cache/clip").expanduser() / os.path.basename(url)).is_file()


def _reachable(url: str, seconds: float = 3.0) -> bool:
    """Whether the host of `url`, or the proxy on the way to it, takes a connection."""
    target = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy") or url
    parsed = urlparse(target if "://" in target else f"http://{target}")
    address = (parsed.hostname or "", parsed.port or (80 if parsed.scheme == "http" else 443))
    taken: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=seconds).close()
            taken.append(True)
        except OSError:
            taken.append(False)

    # A thread, for resolving a name has no time limit.
    trial = threading.Thread(target=connect, daemon=True)
    trial.start()
    trial.join(seconds)
    return bool(taken) and taken[0]
