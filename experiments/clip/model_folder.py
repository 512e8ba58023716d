"""What a foreign model folder or repository may contain: tensors, numbers and words; no code, no path out of it.

open_clip hands a folder's `text_cfg` on to transformers, which runs Python of that folder where `trust_remote_code`
or an `auto_map` says so. Everything that could lead there is refused here, before open_clip or transformers see it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ARCHITECTURE = "open_clip_config.json"

CODE_KEYS = ("trust_remote_code", "auto_map", "custom_pipelines", "code_revision", "custom_generate")
"""With these keys Hugging Face's libraries load Python that lies beside a model."""

KERNEL_KEYS = ("attn_implementation", "experts_implementation")
"""With a repository as value, transformers downloads a compiled kernel from there."""

TOKENIZER_OPTIONS = ("clean", "strip_sep_token", "language", "reduction_mask", "additional_special_tokens")
"""What `tokenizer_kwargs` may hold: open_clip's own options. The rest would go to transformers, or name files."""

WORDS = ("vocab.json", "added_tokens.json", "tokenizer.json")
"""Vocabularies: data alone, and large."""

WEIGHTS = [
    *(f"open_clip_{name}" for name in ("model.safetensors", "pytorch_model.safetensors")),
    *(f"open_clip_{name}" for name in ("pytorch_model.bin", "pytorch_model.pth", "model.pth")),
    *("weights.safetensors", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
]
"""Where open_clip looks for weights, best first."""

MAX_JSON = 8_000_000
"""Bytes of a configuration."""

MAX_PARAMETERS = 4e10
"""Of a model, roughly; the largest open_clip models have 5e9."""

LIMITS = {
    **dict.fromkeys(("embed_dim", "width", "head_width", "context_length", "attn_pooler_queries"), 65_536),
    **dict.fromkeys(("heads", "attn_pooler_heads", "patch_size"), 4_096),
    **{"layers": 1_024, "image_size": 16_384, "vocab_size": 10_000_000, "mlp_ratio": 256},
}
"""The largest value of a size, so that a configuration cannot ask for more memory than any model has."""

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)


class RefusedModel(ValueError):
    """A model that asks for more than tensors, numbers and words."""


def read_json(file: Path, label: str) -> dict[str, Any]:
    """A JSON object out of a file of bounded size; RefusedModel for anything else."""
    try:
        if file.stat().st_size > MAX_JSON:
            raise RefusedModel(f"{label}: {file} is larger than {MAX_JSON:,} bytes, the limit of a configuration")
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise RefusedModel(f"{label}: {file} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise RefusedModel(f"{label}: {file} is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, RefusedModel):
            raise
        raise RefusedModel(f"{label}: {file} is not JSON ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise RefusedModel(f"{label}: {file} must hold a JSON object, got {type(content).__name__}")
    return content


def check_folder(folder: Path, label: str) -> None:
    """RefusedModel, with `label` and the file, if the configurations ask for code or for paths out of it."""
    for file in sorted(folder.iterdir()):
        if not _inside(file, folder):
            raise RefusedModel(f"{label}: {file} leads out of the folder, to {file.resolve()}")
        if file.suffix == ".json" and file.name not in WORDS and not file.name.endswith(".index.json"):
            content = read_json(file, label)
            refuse_code(content, f"{label}: {file}")
            refuse_paths(content, f"{label}: {file}")
    if (folder / ARCHITECTURE).is_file():
        content = read_json(folder / ARCHITECTURE, label)
        if not isinstance(content.get("preprocess_cfg", {}), dict) or "model_cfg" not in content:
            raise RefusedModel(
                f"{label}: {folder / ARCHITECTURE} must hold model_cfg, and preprocess_cfg as an object"
            )
        check_architecture(content["model_cfg"], f"{label}: {folder / ARCHITECTURE}")


def _inside(file: Path, folder: Path) -> bool:
    """Whether a link stays in the folder, or in the blobs of the same repository in Hugging Face's cache."""
    home, target = folder.resolve(), file.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    return target.is_relative_to(home) or target.is_relative_to(blobs)


def refuse_code(content: Any, source: str) -> None:
    """RefusedModel if a key anywhere in a configuration asks for Python or for a compiled kernel."""
    for key, value in _entries(content):
        if key in CODE_KEYS and value not in (None, False, {}, [], ""):
            raise RefusedModel(f"{source} asks for remote code ({key}), which is never run")
        if key.strip("_").removesuffix("_internal") in KERNEL_KEYS and any("/" in word for word in _words(value)):
            raise RefusedModel(f"{source} asks for a compiled kernel ({key}), which is never loaded")


def refuse_paths(content: Any, source: str) -> None:
    """RefusedModel if a tokenizer's file is to be read from elsewhere."""
    for key, value in _entries(content):
        if not key.endswith("_file") or key == "special_tokens_map_file" or not isinstance(value, str):
            continue
        if Path(value).is_absolute() or ".." in Path(value).parts or value.startswith("~"):
            named = f"{key}={value[:80]!r}"
            raise RefusedModel(f"{source} names a file out of the folder ({named}); remove the entry")


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, at any depth."""
    rest = [content]
    while rest:
        value = rest.pop()
        if isinstance(value, Mapping):
            yield from ((str(key), inner) for key, inner in value.items())
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    yield from (inner for _, inner in _entries(value) if isinstance(inner, str))


def check_architecture(model: Any, source: str) -> None:
    """RefusedModel unless `model` is open_clip's description of a model of bounded size, without code or paths."""
    refuse_code(model, source)
    if not isinstance(model, dict) or not all(
        isinstance(model.get(name), kind)
        for name, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    ):
        raise RefusedModel(f"{source} must hold model_cfg with embed_dim, vision_cfg and text_cfg")
    text, vision = model["text_cfg"], model["vision_cfg"]
    options = text.get("tokenizer_kwargs", {})
    if not isinstance(options, dict) or not set(options) <= set(TOKENIZER_OPTIONS):
        shown = ", ".join(sorted(map(str, options))) if isinstance(options, dict) else repr(options)
        raise RefusedModel(
            f"{source}: tokenizer_kwargs may hold {', '.join(TOKENIZER_OPTIONS)} only, got {shown[:120]}"
        )
    for key in ("hf_tokenizer_name", "hf_model_name"):
        name = text.get(key)
        if name is not None and name != "" and not (isinstance(name, str) and REPOSITORY.fullmatch(name)):
            raise RefusedModel(f"{source}: {key} must be a repository such as owner/name, got {str(name)[:80]!r}")
    tower = vision.get("timm_model_name")
    if tower is not None and not re.fullmatch(r"[\w.]+", str(tower), re.ASCII):
        raise RefusedModel(f"{source}: timm_model_name must be one of timm's own, got {str(tower)[:80]!r}")
    _check_sizes(model, source)


def _check_sizes(model: Mapping[str, Any], source: str) -> None:
    total = 0.0
    for part in (model, model["text_cfg"], model["vision_cfg"], model.get("multimodal_cfg", {})):
        if not isinstance(part, Mapping):
            raise RefusedModel(f"{source}: multimodal_cfg must be a JSON object")
        for name in part.keys() & LIMITS.keys():
            for size in part[name] if isinstance(part[name], list) else [part[name]]:
                if size is None and name == "patch_size":  # a ResNet's
                    continue
                if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size <= LIMITS[name]:
                    raise RefusedModel(
                        f"{source}: {name} must lie in 1..{LIMITS[name]:,}, got {str(part[name])[:80]}"
                    )
        layers, width, patch = part.get("layers", 0), part.get("width", 0), part.get("patch_size") or 0
        total += (sum(layers) if isinstance(layers, list) else layers) * 12 * width**2
        total += width * (part.get("vocab_size", 0) + 3 * patch**2)
    if total > MAX_PARAMETERS:
        raise RefusedModel(f"{source} asks for about {total:.0e} parameters; the limit is {MAX_PARAMETERS:.0e}")


def find_weights(folder: Path, label: str) -> Path:
    """The file of a model folder that holds its weights; ValueError if there is none, or no saying which."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".bin", ".pth", ".pt"))
    if len(found) != 1:
        shown = ", ".join(file.name for file in found[:8]) or "none"
        raise ValueError(f"{label}: {folder} must hold one file of weights, such as {WEIGHTS[0]}; it holds {shown}")
    return found[0]


def check_repository(name: str, label: str) -> None:
    """The same for the configurations of a tokenizer or text tower on the hub, which are fetched for it."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for file in ("config.json", "tokenizer_config.json"):
        try:
            content = read_json(Path(hf_hub_download(name, file)), label)
        except EntryNotFoundError:  # a repository need not have both
            continue
        refuse_code(content, f"{label}: {file} of {name}")
        refuse_paths(content, f"{label}: {file} of {name}")


@contextmanager
def no_remote_code(label: str) -> Iterator[None]:
    """transformers neither loads Python of a repository nor asks on the terminal whether it should."""
    if find_spec("transformers") is None:
        yield
        return
    from transformers import dynamic_module_utils as dynamic

    def refuse(*_: Any, **__: Any) -> Any:
        raise RefusedModel(f"{label} asks for remote code, which is never run")

    doors = [name for name in ("get_class_in_module", "get_cached_module_file") if hasattr(dynamic, name)]
    kept = {name: getattr(dynamic, name) for name in [*doors, "TIME_OUT_REMOTE_CODE"] if hasattr(dynamic, name)}
    for name in doors:
        setattr(dynamic, name, refuse)
    dynamic.TIME_OUT_REMOTE_CODE = 0  # no question
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error) and not isinstance(error, RefusedModel):
            raise RefusedModel(f"{label} asks for remote code (trust_remote_code), which is never run") from None
        raise
    finally:
        for name, value in kept.items():
            setattr(dynamic, name, value)
