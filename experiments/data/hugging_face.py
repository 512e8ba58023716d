"""`data=hf`: a data set of the `datasets` library, a folder that `save_to_disk` wrote or a name on the Hub.

The library loads it, and its Arrow files are then read by row (`experiments.data.row_files`). Version 4 and later
run no code of a data set; older ones are refused. Images are taken as they lie in the rows: the library would also
open whatever path or address a row names.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from experiments.data.row_data import RowData
from experiments.runtime.safe_text import printable

log = logging.getLogger(__name__)

INSTALL = "install it with: .venv/bin/uv pip install -e '.[hf]'"
_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_STATE, _SPLITS = "state.json", "dataset_dict.json"
_OLDEST = 4  # version of `datasets`


@dataclass(frozen=True)
class HuggingFace(RowData):
    """A data set of the `datasets` library.

    path: a folder that `save_to_disk` wrote, or a name on the Hub, which is fetched into the library's cache.
    split: one of its splits; None: "train", or the only one.
    config, revision: of a data set on the Hub.
    """

    path: str
    split: str | None = None
    config: str | None = None
    revision: str | None = None
    name: str = "hf"  # of the data set, in tables

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(f"data.path must name a folder or a data set on the Hub, got {self.path!r}")
        super().__post_init__()

    def files(self) -> list[str]:
        if find_spec("datasets") is None:
            raise ImportError(f"data=hf needs the package datasets; {INSTALL}")
        if not os.path.exists(self.path):
            return list(_on_hub(self.path, self.config, self.split, self.revision))
        if self.config is not None or self.revision is not None:
            raise ValueError(f"data.config and data.revision are of a data set on the Hub; {self.path} is a folder")
        folder = self._split_folder(Path(self.path))
        _check_state(folder, self.follow_links)
        return list(_saved(str(folder.absolute()), (folder / _STATE).stat().st_mtime_ns))

    def _split_folder(self, folder: Path) -> Path:
        """The folder of one split; raises ValueError for a folder that `save_to_disk` did not write."""
        if (folder / _SPLITS).is_file():
            splits = _read(folder / _SPLITS).get("splits")
            if not isinstance(splits, list) or not all(isinstance(s, str) and _is_name(s) for s in splits):
                raise ValueError(f"data.path={self.path}: {_SPLITS} names no splits")
            folder = folder / _chosen(splits, self.split, self.path)
        elif self.split is not None:
            raise ValueError(f"data.split={self.split}: {self.path} holds one split only")
        if not (folder / _STATE).is_file():
            raise ValueError(
                f"data.path={self.path} is not a folder that save_to_disk wrote (it has no {_STATE}); for Parquet "
                "files choose data=parquet, for tars data=webdataset, for pictures data=pictures"
            )
        return folder


def _check_state(folder: Path, follow_links: bool) -> None:
    """Refuse a folder whose list of files leads out of it."""
    listed = _read(folder / _STATE).get("_data_files")
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed or []]
    for name in names:
        if not isinstance(name, str) or not _is_name(name):
            raise ValueError(f"data.path={folder}: {_STATE} names {printable(name)!r}, which is not in the folder")
        if not follow_links and not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"data.path={folder}: {name} is a link out of the folder; data.follow_links=true follows it"
            )


def _is_name(name: str) -> bool:
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def _chosen(splits: list[str], given: str | None, path: str) -> str:
    if given is None and ("train" in splits or len(splits) == 1):
        return "train" if "train" in splits else splits[0]
    if given not in splits:
        raise ValueError(
            f"data.split={given} is no split of {path}; its splits: {', '.join(map(printable, splits))}"
        )
    return given


@functools.lru_cache(maxsize=8)
def _saved(folder: str, _: int) -> tuple[str, ...]:
    """The Arrow files of a saved split; `_`: time of its last change."""
    datasets = _library()
    try:
        return _arrow_files(datasets.load_from_disk(folder, keep_in_memory=False), folder)
    except Exception as error:  # the library's and Arrow's own, of many classes
        raise ValueError(f"data.path={folder} cannot be loaded: {_brief(error)}") from None


@functools.lru_cache(maxsize=8)
def _on_hub(name: str, config: str | None, split: str | None, revision: str | None) -> tuple[str, ...]:
    """The Arrow files, in the library's cache, of a data set on the Hub."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"data.path={name!r} is neither a folder nor the name of a data set, such as owner/name")
    datasets = _library()
    online = _reachable()
    log.info("data=hf: %s is loaded by the datasets library%s", name, "" if online else ", from its cache")
    how = datasets.DownloadConfig(local_files_only=not online)
    try:
        found = datasets.load_dataset(name, config, split=split, revision=revision, download_config=how)
    except Exception as error:  # the library's, the network's and Arrow's own, of many classes
        reason = _brief(error) if online else "the Hub cannot be reached, and it is not in the cache"
        raise ValueError(f"data.path={name} cannot be loaded: {reason}") from None
    if isinstance(found, dict):
        found = found[_chosen(list(found), split, name)]
    return _arrow_files(found, name)


def _arrow_files(found: Any, path: str) -> tuple[str, ...]:
    files = tuple(os.path.abspath(entry["filename"]) for entry in found.cache_files)
    if not files or getattr(found, "_indices", None) is not None:
        raise ValueError(f"data.path={path} has no Arrow files of its own; save it with save_to_disk first")
    return files


def _library() -> Any:
    import datasets

    if int(datasets.__version__.partition(".")[0]) < _OLDEST:
        raise ValueError(
            f"data=hf needs version {_OLDEST} of datasets, which runs no code of data sets; "
            f"{datasets.__version__} is installed"
        )
    datasets.disable_progress_bars()
    return datasets


def _reachable() -> bool:
    """Whether the Hub's name can be resolved; assumed behind a proxy. The library would try for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return True
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        return False
    return True


def _brief(error: Exception) -> str:
    return printable(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
