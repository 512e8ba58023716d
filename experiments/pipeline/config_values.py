"""Values of the configuration that are refused, by their key, before any work; and sizes that follow the model."""

from __future__ import annotations

from dataclasses import is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

MAX_SEED = 2**32 - 1
"""The largest that numpy, scikit-learn and torch all take."""

MOST_PROCESSES = 1024
"""More workers or threads than any machine has use for; far more bring it to a stop."""

_KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "a text"),
    bool: ((bool,), "true or false"),
}


def check_values(config: DictConfig) -> None:
    """Refuse a value whose type is not the plain type of its class's field: ValueError names its key.

    A `size` of null is that of the model (`follow_size`).
    """
    from hydra.utils import get_class

    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        key, node = waiting.pop()
        if OmegaConf.is_list(node):
            waiting += [(f"{key}.{place}", node._get_node(place)) for place in range(len(node))]
        if not OmegaConf.is_dict(node):
            continue
        if "seed" in node and not OmegaConf.is_missing(node, "seed"):
            _check_seed(f"{key}.seed".strip("."), node["seed"])
        waiting += [(f"{key}.{name}".strip("."), node._get_node(name)) for name in node]
        target = None if OmegaConf.is_missing(node, "_target_") else node.get("_target_")
        cls = get_class(target) if isinstance(target, str) else None
        for name, wanted in _hints(cls).items():
            if name in node and not OmegaConf.is_missing(node, name) and (name != "size" or node[name] is not None):
                _check_value(f"{key}.{name}", node[name], wanted)


def _check_seed(key: str, value: Any) -> None:
    if isinstance(value, int) and not 0 <= value <= MAX_SEED:
        raise ValueError(f"{key} must lie in 0..{MAX_SEED}, got {value}")


def _hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields; an empty dictionary where they cannot be resolved here."""
    try:
        return get_type_hints(cls) if is_dataclass(cls) else {}
    except NameError:  # of a name that only a type checker imports
        return {}


def _check_value(key: str, value: Any, wanted: Any) -> None:
    choices = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    if value is None and type(None) in choices:
        return
    kinds = [_KINDS[choice] for choice in choices if choice in _KINDS]
    if not kinds or len(kinds) + (type(None) in choices) < len(choices):
        return  # not a plain type; its class checks it
    if not any(
        isinstance(value, types) and (bool in types or (value is not True and value is not False))
        for types, _ in kinds
    ):
        named = " or ".join(word for _, word in kinds) + " or null" * (type(None) in choices)
        raise ValueError(f"{key} must be {named}, got {value!r}")


def settle_size(config: DictConfig) -> DictConfig:
    """A copy in which a model of open_clip whose `size` is null has that of the data, if it is set, or its own."""
    from experiments.clip.open_clip_metadata import native_size

    config = config.copy()
    if "size" in config.model and config.model.size is None:
        config.model.size = OmegaConf.select(config, "data.size") or native_size(config.model.name) or 224
    return config


def follow_size(config: DictConfig, of_model: int) -> DictConfig:
    """A copy in which data and test images have the side of the model's input, unless they were given another."""
    config = config.copy()
    for group in ("data", "eval"):
        if "size" in config[group] and config[group].size is None:
            config[group].size = of_model
    return config


def check_runtime(runtime: DictConfig) -> None:
    """Refuse a device or a limit that this machine does not have: ValueError names its key."""
    for name, least in (("workers", 0), ("threads", 1), ("log_every", 0), ("checkpoint_seconds", 0)):
        value = runtime[name]
        if value is not None and value < least:
            raise ValueError(f"runtime.{name} must be at least {least}, got {value}")
    for name in ("workers", "threads"):
        if (runtime[name] or 0) > MOST_PROCESSES:
            raise ValueError(f"runtime.{name} must be at most {MOST_PROCESSES}, got {runtime[name]}")
    if not runtime.store.strip():
        raise ValueError(f"runtime.store must name a folder, got {runtime.store!r}")
    if runtime.decoder not in ("pillow", "device"):
        raise ValueError(f"runtime.decoder must be pillow or device, got {runtime.decoder!r}")
    if runtime.device in ("auto", "cpu"):
        return
    kind, _, number = str(runtime.device).partition(":")
    if kind != "cuda" or not (number.isdigit() or not number):
        raise ValueError(f"runtime.device must be auto, cpu, cuda or cuda:<number>, got {runtime.device!r}")
    import torch

    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        seen = f"torch sees {count} GPUs" if count else "torch sees no GPU"
        raise ValueError(f"runtime.device={runtime.device} cannot be used: {seen}; use runtime.device=cpu")
