"""Weights that exist already: local checkpoints of several makers, and published ones without a long wait.

Nothing here unpickles code: tensors are read with `torch.load(weights_only=True)` or safetensors.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Under which key training scripts keep the weights beside the optimiser and the epoch."""

PREFIXES = ("module.", "_orig_mod.", "model.", "clip.")
"""What DistributedDataParallel, torch.compile and wrapping modules put before every name."""

TOWERS = {
    "vision_model.": "visual.", "vision.": "visual.", "image_encoder.": "visual.",
    "text_model.": "text.", "textual.": "text.", "text_encoder.": "text.",
}  # fmt: skip
"""Other people's names for open_clip's two towers, `visual` and `text`."""


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, whatever dictionary they lie in; on the CPU."""
    file = Path(file)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"model.checkpoint: {file} is no file of plain tensors ({type(error).__name__}). Nothing else is read: "
            "a pickle could run any code; save it again with torch.save(model.state_dict(), ...) or as safetensors"
        ) from error
    for _ in range(3):
        if isinstance(content, Mapping) and not _is_state(content):
            inner = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
            content = inner if inner is not None else content
    if not isinstance(content, Mapping) or not _is_state(content):
        keys = sorted(map(str, content))[:8] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"model.checkpoint: no weights found in {file}; it holds {keys}")
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _is_state(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(value, Tensor) for value in content.values())


def fit_names(state: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
    """Rename the tensors to the names a model wants, where only prefixes and tower names differ."""
    names = {name: name for name in state}
    for _ in range(4):
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in names.values())), None)
        if prefix is not None:
            names = {old: name.removeprefix(prefix) for old, name in names.items()}
    flat = not any(name.startswith("text.") for name in wanted)  # open_clip.CLIP; else CustomTextCLIP
    fitted = {}
    for old, name in names.items():
        for theirs, ours in TOWERS.items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        if flat:
            name = name.removeprefix("text.")
        elif not name.startswith(("visual.", "text.")) and f"text.{name}" in wanted:
            name = f"text.{name}"
        fitted[name] = state[old]
    fitted.pop("attn_mask", None)  # a constant that older versions saved
    fitted.pop("text.attn_mask", None)
    return fitted


def load_checkpoint(clip: nn.Module, file: str | Path) -> None:
    """Load a checkpoint into an open_clip model; a ValueError names what does not fit."""
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    wanted = clip.state_dict()
    state = fit_names(read_state_dict(file), list(wanted))
    for name in ("logit_scale", "logit_bias"):
        if name in state and name in wanted:
            state[name] = state[name].reshape(wanted[name].shape)
    resize_pos_embed(state, clip)
    resize_text_pos_embed(state, clip)
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = sorted(n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape)
    problems = [
        f"{len(names)} {what}, such as {names[0]}"
        for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(f"model.checkpoint: {file} does not fit model.name: tensors {'; '.join(problems)}")
    clip.load_state_dict(state)


def architecture_names() -> list[str]:
    """open_clip's built-in architectures, without the seconds that importing it takes."""
    return sorted(file.stem for file in _configurations().glob("*.json"))


def require_architecture(name: str) -> None:
    """A ValueError with the nearest names, unless open_clip has `name` built in or it names a source of its own."""
    if name.startswith(("hf-hub:", "local-dir:")):
        if not name.partition(":")[2]:
            raise ValueError(f"model.name needs a repository or folder behind the colon, got {name!r}")
        return
    names = architecture_names()
    if name.replace("/", "-") not in names:
        near = difflib.get_close_matches(name, names, 5, 0.4)
        raise ValueError(
            f"model.name must be one of open_clip's {len(names)} architectures, hf-hub:<owner>/<repository> or "
            f"local-dir:<folder>, got {name!r}; nearest: {', '.join(near) or 'none'}"
        )


def native_size(name: str) -> int | None:
    """Side in pixels that a built-in architecture is made for; None for other sources."""
    file = _configurations() / f"{name.replace('/', '-')}.json"
    if not file.is_file():
        return None
    size = json.loads(file.read_text())["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, list) else size)


def _configurations() -> Path:
    found = find_spec("open_clip")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the package open_clip_torch is not installed")
    return Path(found.origin).parent / "model_configs"


@contextmanager
def published(what: str, url: str = "") -> Iterator[None]:
    """Fetch published weights inside; without network it fails at once, unless they are in the cache.

    huggingface_hub retries for the better part of a minute before it gives up; here its host is tried once,
    for three seconds, and its offline mode is used for the time being where that fails.
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
        if not unreachable:
            raise
        why = "HF_HUB_OFFLINE is set" if offline else f"{urlparse(endpoint).hostname} cannot be reached"
        raise RuntimeError(
            f"{what} is not in this machine's cache and {why}. Fetch it where there is a network and bring the "
            "cache along (HF_HOME), or give a local file as model.checkpoint"
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
