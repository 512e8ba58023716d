"""open_clip's constructors, restricted to what `experiments.clip.model_folder` allows, without its log lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from experiments.clip.model_folder import ARCHITECTURE, read_json
from experiments.clip.open_clip_metadata import HUB, LOCAL, built_in


def require_packages(name: str) -> None:
    """ValueError if a model of open_clip's own, or of a folder, needs transformers, and it is not installed."""
    if name.startswith(HUB) or find_spec("transformers") is not None:
        return
    if name.startswith(LOCAL):
        model = read_json(Path(name.partition(":")[2]) / ARCHITECTURE, "model.name")["model_cfg"]
    else:
        model = built_in(name)
    for key, what in (("hf_tokenizer_name", "tokenizer"), ("hf_model_name", "text tower")):
        if model["text_cfg"].get(key):
            raise ValueError(
                f"model.name={name} needs the package transformers for its {what}: pip install transformers"
            )


def create(name: str, **options: Any) -> nn.Module:
    """open_clip's model; ValueError if open_clip cannot build what its description asks for."""
    import open_clip

    own = (RuntimeError,) if name.startswith(LOCAL) else ()  # else a download that failed
    try:
        return open_clip.create_model(name, pretrained_text=False, weights_only=True, **options)
    except (TypeError, AttributeError, KeyError, AssertionError, ZeroDivisionError, IndexError, *own) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"model.name: open_clip cannot build {name}: {reason}") from error


def create_tokenizer(name: str, architecture: Mapping[str, Any]) -> Any:
    """open_clip's tokenizer; one that comes from transformers may load no remote code."""
    import open_clip

    foreign = architecture["text_cfg"].get("hf_tokenizer_name")
    return open_clip.get_tokenizer(name, **({"trust_remote_code": False} if foreign else {}))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the root logger inside: open_clip writes a dozen lines for each model."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
