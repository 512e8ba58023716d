"""open_clip's constructors, held to what `experiments.clip.model_folder` allows; and quiet."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from experiments.clip.checkpoints import configuration
from experiments.clip.model_folder import ARCHITECTURE, check_architecture, check_repository, read_json


def architecture_of(name: str) -> dict[str, Any]:
    """open_clip's description of a model, checked where it comes from elsewhere; hub repositories are fetched."""
    import open_clip

    foreign = name.startswith(("hf-hub:", "local-dir:"))
    architecture: dict[str, Any] = open_clip.get_model_config(name if foreign else name.replace("/", "-"))
    if foreign:
        check_architecture(architecture, f"{ARCHITECTURE} of {name}")
    if name.startswith("hf-hub:"):
        text = architecture["text_cfg"]
        for other in {text.get("hf_tokenizer_name"), text.get("hf_model_name")} - {None, ""}:
            check_repository(other, name)
    return architecture


def require_packages(name: str) -> None:
    """ValueError if a model of open_clip's own, or of a folder, needs transformers, and it is not installed."""
    if name.startswith("hf-hub:") or find_spec("transformers") is not None:
        return
    if name.startswith("local-dir:"):
        model = read_json(Path(name.partition(":")[2]) / ARCHITECTURE, "model.name")["model_cfg"]
    else:
        model = configuration(name)
    for key, what in (("hf_tokenizer_name", "tokenizer"), ("hf_model_name", "text tower")):
        if model["text_cfg"].get(key):
            raise ValueError(
                f"model.name={name} needs the package transformers for its {what}: pip install transformers"
            )


def create(name: str, **options: Any) -> nn.Module:
    """open_clip's model; a ValueError where its description is none that open_clip builds."""
    import open_clip

    own = (RuntimeError,) if name.startswith("local-dir:") else ()  # else a download that failed
    try:
        return open_clip.create_model(name, pretrained_text=False, weights_only=True, **options)
    except (TypeError, AttributeError, KeyError, AssertionError, ZeroDivisionError, IndexError, *own) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"model.name: open_clip cannot build {name}: {reason}") from error


def create_tokenizer(name: str, architecture: Mapping[str, Any]) -> Any:
    """open_clip's tokenizer; one of transformers is told to load no code."""
    import open_clip

    foreign = architecture["text_cfg"].get("hf_tokenizer_name")
    return open_clip.get_tokenizer(name, **({"trust_remote_code": False} if foreign else {}))


@contextmanager
def quiet() -> Iterator[None]:
    """open_clip writes a dozen lines on the root logger for each model, a warning for those to be trained."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
