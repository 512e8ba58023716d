"""The tensors of a checkpoint file. No code of the file runs: a pickle's classes and functions are never called.

`torch.load(weights_only=True)` reads PyTorch's formats, `safetensors` its own. What training scripts store beside
the weights (arguments, NumPy scalars, paths, configurations) is replaced by stand-ins that hold nothing.
"""

from __future__ import annotations

import json
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
"""Under which key training scripts keep the weights beside the optimiser and the epoch."""

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow_params")
"""The same for an average of the weights, which is read where nothing else is there."""

MAX_HEADER = 100_000_000
"""Bytes; the limit of the safetensors format for its header."""

LOOKS_LIKE = {
    b"version https://git-lfs.github.com/spec": "a Git LFS pointer, not the weights; run `git lfs pull`",
    b"<!doctype html": "an HTML page, not the weights; the download failed or needs a login",
    b"<html": "an HTML page, not the weights; the download failed or needs a login",
    b"<?xml": "an XML page, not the weights; the download failed",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"\x93numpy": "a NumPy array; only PyTorch's files and safetensors are read",
    b"\x89hdf": "an HDF5 file; only PyTorch's files and safetensors are read",
}
"""How a file begins, in lower case, and what it then is."""


class _Beside:
    """Stands for an object that is no tensor, whatever its class."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _BesideDict:
    """The same for an object that was filled like a dictionary."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


def _names(module: str, names: str) -> list[str]:
    return [f"{module}.{name}" for name in names.split()]


BESIDE = [
    *_names("argparse", "Namespace"),
    *_names("types", "SimpleNamespace"),
    *_names("typing", "Any"),
    *_names("datetime", "datetime date timedelta"),
    *_names("builtins", "dict list tuple int float str bool slice range"),
    *_names("copyreg", "_reconstructor"),
    *_names("pathlib", "Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath"),
    *_names("pathlib._local", "Path PurePath PosixPath PurePosixPath WindowsPath PureWindowsPath"),
    *_names("numpy", "ndarray dtype float64 float32 float16 int64 int32 bool_ str_"),
    *_names("numpy.dtypes", " ".join(np.dtypes.__all__)),
    *_names("numpy.core", "multiarray.scalar multiarray._reconstruct numeric._frombuffer"),
    *_names("numpy._core", "multiarray.scalar multiarray._reconstruct numeric._frombuffer"),
    *_names("omegaconf", "base.ContainerMetadata base.Metadata dictconfig.DictConfig listconfig.ListConfig"),
    *_names("omegaconf.nodes", "ValueNode AnyNode StringNode IntegerNode FloatNode BooleanNode"),
]
"""What is let through, as a stand-in. Everything else is refused by name."""

DICTIONARIES = [
    *_names("collections", "defaultdict"),
    *_names("pytorch_lightning.utilities.parsing", "AttributeDict"),
    *_names("lightning.pytorch.utilities.parsing", "AttributeDict"),
    *_names("lightning_fabric.utilities.data", "AttributeDict"),
    *_names("lightning.fabric.utilities.data", "AttributeDict"),
    *_names("easydict", "EasyDict"),
    *_names("addict.addict", "Dict"),
    *_names("ml_collections.config_dict", "ConfigDict"),
    *_names("yacs.config", "CfgNode"),
]
"""The same for what is filled like a dictionary."""

STAND_INS: list[Any] = [
    *((_Beside, name) for name in BESIDE),
    *((_BesideDict, name) for name in DICTIONARIES),
]


def read_state_dict(file: str | Path, label: str = "model.checkpoint") -> dict[str, Tensor]:
    """Name -> tensor of a checkpoint, from whichever dictionary holds them; on the CPU.

    Raises ValueError, with `label` and what the file is, for anything but whole files of plain tensors.
    """
    file = Path(file)
    refuse_other_files(file, label)
    if _header_length(file) is not None:
        return _plain(_read_safetensors(file, label), file, label)
    try:
        with torch.serialization.safe_globals(STAND_INS):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{label}: {file} {_why(error)}") from None
    state = _weights(content)
    if state is None:
        keys = sorted(map(str, content))[:8] if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{label}: no weights found in {file}; it holds {keys}")
    return _plain(state, file, label)


def refuse_other_files(file: Path, label: str = "model.checkpoint") -> None:
    """ValueError that says what `file` is, if its size and its first bytes show that it holds no weights."""
    if not file.is_file():
        raise ValueError(f"{label} must be a file, but there is no {str(file)!r}")
    head = _begin(file, 4096)
    if not head:
        raise ValueError(f"{label}: {file} is empty")
    if not head.strip(b"\0"):
        raise ValueError(f"{label}: {file} begins with zeros only; its download is incomplete")
    start = head.lstrip().lower()
    for prefix, what in LOOKS_LIKE.items():
        if start.startswith(prefix):
            raise ValueError(f"{label}: {file} is {what}")
    if start.startswith((b"{", b"[")) or file.suffix == ".json":
        what = "a JSON file, not the weights"
        if b"weight_map" in _begin(file, 1_000_000):
            what = "an index that lists a model's parts; give one file of weights"
        raise ValueError(f"{label}: {file} is {what}")
    if head.startswith(b"PK"):
        _refuse_archives(file, label)
    elif _header_length(file) is None and file.suffix == ".safetensors":
        raise ValueError(f"{label}: {file} is no safetensors file: it has no header")


def _begin(file: Path, size: int) -> bytes:
    with file.open("rb") as stream:
        return stream.read(size)


def _refuse_archives(file: Path, label: str) -> None:
    """Zip archives other than PyTorch's, which stores its records as they are; a compressed one could be a bomb."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise ValueError(f"{label}: {file} is cut short or damaged: the directory at its end is missing") from None
    names = [record.filename for record in records]
    if any(name.endswith(("/constants.pkl", "/code/")) or "/code/" in name for name in names):
        raise ValueError(f"{label}: {file} is a TorchScript program, which is never run; save its state_dict()")
    if not any(name.endswith("data.pkl") for name in names):
        raise ValueError(f"{label}: {file} is a zip archive without PyTorch's data.pkl; unpack it first")
    if sum(record.file_size for record in records) > file.stat().st_size:
        raise ValueError(f"{label}: {file} is a compressed zip archive, which torch.save does not write")


def _why(error: Exception) -> str:
    """The rest of a sentence that begins with the file."""
    text = str(error)
    again = "Save it again with torch.save(model.state_dict(), ...) or as safetensors"
    for marker in ("Unsupported global: GLOBAL ", "unsupported GLOBAL "):
        if marker in text:
            name = text.split(marker)[1].split()[0]
            return f"is no file of plain tensors: it names {name}, which is not run. {again}"
    if isinstance(error, EOFError) or "unexpected EOF" in text or "Ran out of input" in text:
        return "is cut short: it ends in the middle of its content"
    reason = f"({type(error).__name__}). Nothing else is read, for a pickle could run any code"
    return f"is no file of plain tensors {reason}. {again}"


def _header_length(file: Path) -> int | None:
    """Bytes of a safetensors file's header; None for other files."""
    head = _begin(file, 9)
    length = int.from_bytes(head[:8], "little")
    return length if len(head) == 9 and head[8:] == b"{" and 2 <= length <= MAX_HEADER else None


def _read_safetensors(file: Path, label: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    length = _header_length(file) or 0
    text = _begin(file, 8 + length)[8:]
    cut = f"{label}: {file} is cut short or damaged"
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError):
        raise ValueError(f"{cut}: its header cannot be read") from None
    if not ends:
        raise ValueError(f"{label}: no weights found in {file}; it holds no tensors")
    size, wanted = file.stat().st_size, 8 + length + max(ends)
    if size != wanted:
        raise ValueError(f"{cut}: {size:,} bytes where its header announces {wanted:,}")
    try:
        return load_file(file)
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise ValueError(f"{cut}: {error}") from None


def _weights(content: Any, depth: int = 3) -> Mapping[Any, Any] | None:
    """The dictionary of tensors in a checkpoint; the plain weights before their average."""
    if not isinstance(content, Mapping) or depth < 0:
        return None
    if _is_state(content):
        return content
    for key in WRAPPERS + AVERAGES:
        found = _weights(content.get(key), depth - 1)
        if found is not None:
            return found
    return None


def _is_state(content: Mapping[Any, Any]) -> bool:
    """Whether tensors make up the dictionary, apart from counters and the like (`_extra_state`, `version`)."""
    others = [value for value in content.values() if not isinstance(value, Tensor)]
    inner = [value for value in others if isinstance(value, Mapping)]
    nested = any(isinstance(value, Tensor) for mapping in inner for value in mapping.values())
    return len(content) > 2 * len(others) and not nested


def _plain(state: Mapping[Any, Any], file: Path, label: str) -> dict[str, Tensor]:
    """The tensors, unless one of them is more than a piece of the file: sparse, quantised, or a view blown up."""
    tensors = {str(name): value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{label}: {file} holds a tensor that is not dense: {name[:80]!r}")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"{label}: {file} holds a tensor larger than its own data: {name[:80]!r}")
    return tensors
