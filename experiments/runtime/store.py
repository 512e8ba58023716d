"""The stage store: each stage's result is a folder named by a hash of everything that can change it.

    <root>/<stage>/<key>/           a finished result, with meta.json
    <root>/<stage>/<key>.partial/   one under construction; training resumes from the checkpoint inside
    <root>/<stage>/<key>.lock       parallel jobs that need the same result wait for the one that builds it

The rename from `.partial` to its final name is completion: a folder without the suffix is whole.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.runtime import distributed

log = logging.getLogger(__name__)

Make = Callable[[Path], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline, before it is computed.

    `config` is the stage's own resolved configuration and `inputs` maps a role to the key of the result it
    reads. `version` is raised by hand when the stage's code changes its results; where several pieces of code
    share the work, each has its own.
    """

    name: str
    version: int | Mapping[str, int]
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    width: int | None = None  # of a table that serves every smaller width too

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the hash of name, version, configuration and inputs; and the width, if any."""
        content = [self.name, self.version, self.config, dict(self.inputs)]
        text = json.dumps(content, sort_keys=True, default=_refuse)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return key if self.width is None else f"{key}-{self.width}"


@dataclass(frozen=True)
class Entry:
    """A finished stage: where its files are, and whether they had been there before."""

    name: str
    key: str
    path: Path
    reused: bool
    seconds: float  # what computing it took, when it was computed
    facts: Mapping[str, Any] = field(default_factory=dict)  # what `make` told of it


class Store:
    """A folder of stage results (see the module's docstring)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def path(self, stage: Stage) -> Path:
        return self.root / stage.name / stage.key

    def has(self, stage: Stage) -> bool:
        return self.path(stage).is_dir()

    def of_width(self, stage: Stage, width: int) -> Stage:
        """The stage of the narrowest finished table that is at least `width` wide, else of one exactly so wide."""
        finished = [path.name.partition("-")[2] for path in (self.root / stage.name).glob(f"{stage.key}-*")]
        enough = [int(name) for name in finished if name.isdigit() and int(name) >= width]
        return replace(stage, width=min(enough, default=width))

    def get(self, stage: Stage, make: Make, *, collective: bool = False) -> Entry:
        """Return the stage's result, computing it with `make(folder)` if no one has yet.

        What `make` returns, if anything, is kept as the entry's facts.

        A failed or killed `make` leaves its `.partial` folder, and the next one is given the same folder.
        With `collective`, every process of a distributed run enters `make`; otherwise rank 0 alone does.
        """
        final = self.path(stage)
        partial = final.with_name(stage.key + ".partial")
        if not distributed.is_main():
            must_build = distributed.broadcast(None)
            if must_build and collective:
                make(partial)
            failure = distributed.broadcast(None)
            if failure:
                raise RuntimeError(f"rank 0 failed: {failure}")
            return self._entry(stage, reused=not must_build)
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.with_name(stage.key + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s %s: another job is computing it, waiting", stage.name, stage.key)
            lock.acquire()
        try:
            must_build = distributed.broadcast(not final.is_dir())
            if must_build:
                partial.mkdir(exist_ok=True)
                earlier = _read_seconds(partial)
                begin = time.perf_counter()
                try:
                    facts = make(partial)
                finally:
                    # A killed run keeps the time it had noted at its last checkpoint, if any.
                    _write_seconds(partial, earlier + time.perf_counter() - begin)
                self._publish(stage, partial, final, facts or {})
        except Exception as error:
            if not collective:  # the others wait for the outcome, and take up the next stage together
                distributed.broadcast(f"{type(error).__name__}: {error}")
            raise
        finally:
            lock.release()
        distributed.broadcast(None)
        return self._entry(stage, reused=not must_build)

    def _publish(self, stage: Stage, partial: Path, final: Path, facts: Mapping[str, Any]) -> None:
        seconds = _read_seconds(partial)
        (partial / ".seconds").unlink(missing_ok=True)
        meta = {
            "stage": stage.name,
            "version": stage.version if isinstance(stage.version, int) else dict(stage.version),
            "key": stage.key,
            "config": stage.config,
            "inputs": dict(stage.inputs),
            "seconds": round(seconds, 3),
            "facts": dict(facts),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **_provenance(),
        }
        (partial / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True))
        partial.rename(final)

    def _entry(self, stage: Stage, reused: bool) -> Entry:
        path = self.path(stage)
        meta = json.loads((path / "meta.json").read_text())
        return Entry(stage.name, stage.key, path, reused, meta["seconds"], meta.get("facts", {}))

    def __str__(self) -> str:
        size = 0
        for folder, _, names in os.walk(self.root):  # what other jobs rename or remove meanwhile is not counted
            for name in names:
                with suppress(FileNotFoundError):
                    size += os.path.getsize(os.path.join(folder, name))
        return f"the store {self.root} holds {size / 1e6:.0f} MB (make clean-store removes it)"


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content: what a stage that reads it puts into its configuration."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@functools.cache
def _provenance() -> dict[str, Any]:
    packages = ("torch", "open_clip_torch", "numpy", "scikit-learn", "faiss-gpu", "faiss-cpu")
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"  # an installed package, or a machine without git
    return {"versions": versions, "commit": commit}


def _read_seconds(partial: Path) -> float:
    file = partial / ".seconds"
    return float(file.read_text()) if file.exists() else 0.0


def _write_seconds(partial: Path, seconds: float) -> None:
    if partial.is_dir():
        (partial / ".seconds").write_text(f"{seconds:.3f}")


def _refuse(value: Any) -> Any:
    raise TypeError(f"a stage's configuration must be plain JSON values, got {type(value).__name__}: {value!r}")
