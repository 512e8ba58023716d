"""open_clip's descriptions of its models: which there are, what size they take, how they are built."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from experiments.clip.model_folder import ARCHITECTURE, check_architecture, check_repository
from experiments.runtime.nearest_name import nearest_names

HUB, LOCAL = "hf-hub:", "local-dir:"
"""What the name of a model begins with that brings its own description and weights."""


def architecture_names() -> list[str]:
    """open_clip's built-in architectures, without the seconds that importing it takes."""
    return sorted(file.stem for file in _configurations().glob("*.json"))


def require_architecture(name: str) -> None:
    """ValueError with the nearest names, unless open_clip has `name` built in or it names a source of its own."""
    if name.startswith((HUB, LOCAL)):
        if not name.partition(":")[2]:
            raise ValueError(f"model.name needs a repository or folder after the colon, got {name!r}")
        return
    names = architecture_names()
    if name.replace("/", "-") not in names:
        near = nearest_names(name, names, 5, 0.4)
        raise ValueError(
            f"model.name must be one of open_clip's {len(names)} architectures, {HUB}<owner>/<repository> or "
            f"{LOCAL}<folder>, got {name!r}; nearest: {', '.join(near) or 'none'}"
        )


def built_in(name: str) -> dict[str, Any]:
    """The description of a built-in architecture; ValueError as in `require_architecture`."""
    require_architecture(name)
    file = _configurations() / f"{name.replace('/', '-')}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def architecture_of(name: str) -> dict[str, Any]:
    """The description of any model; one from elsewhere is checked, and fetched if it is on the hub."""
    if not name.startswith((HUB, LOCAL)):
        return built_in(name)
    import open_clip

    architecture: dict[str, Any] = open_clip.get_model_config(name)
    check_architecture(architecture, f"{ARCHITECTURE} of {name}")
    if name.startswith(HUB):
        text = architecture["text_cfg"]
        for other in {text.get("hf_tokenizer_name"), text.get("hf_model_name")} - {None, ""}:
            check_repository(other, name)
    return architecture


def native_size(name: str) -> int | None:
    """Side in pixels that a built-in architecture is made for; None for other sources."""
    if name.startswith((HUB, LOCAL)):
        return None
    size = built_in(name)["vision_cfg"].get("image_size", 224)
    return int(size[0] if isinstance(size, list) else size)


def _configurations() -> Path:
    found = find_spec("open_clip")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("the package open_clip_torch is not installed")
    return Path(found.origin).parent / "model_configs"
