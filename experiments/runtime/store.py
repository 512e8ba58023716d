"""The stage store: each stage's result is a folder named by a hash of everything that can change it.

    <root>/<stage>/<key>/           a finished result, with meta.json
    <root>/<stage>/<key>.partial/   one under construction; training resumes from the checkpoint inside
    <root>/<stage>/<key>.lock       parallel jobs that need the same result wait for the one that builds it
    <root>/set-aside/<stage>/       what could not be used any more, as <key>.corrupt-<n>

The rename from `.partial` to its final name is completion: a folder without the suffix was whole then. Its
meta.json holds a digest of every file; before a result is handed out for the first time in a run it is compared
with them, and one that differs is set aside and computed again. `make verify` compares a whole store.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.runtime import distributed, stopping
from experiments.runtime.atomic import LEFT_BEHIND, sync, write_whole
from experiments.runtime.digests import EXTRA, META, faults, list_files, read_meta, sealed, unreadable
from experiments.runtime.made_with import made_with
from experiments.runtime.stopping import Stopped
from experiments.runtime.stopwatch import SECONDS, read_seconds, timed

log = logging.getLogger(__name__)

Make = Callable[[Path], Mapping[str, Any] | None]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides one result of a stage, before it is computed.

    version: raised by hand when the stage's code changes its results; each of several pieces of code has its own.
    config: what the stage reads of the resolved configuration.
    inputs: role -> key of the result that it reads.
    width: of a table that serves every smaller width too.
    """

    name: str
    version: int | Mapping[str, int]
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    width: int | None = None

    @property
    def key(self) -> str:
        """16 hexadecimal digits of the hash of name, version, configuration and inputs; and the width, if any."""
        content = [self.name, self.version, self.config, dict(self.inputs)]
        text = json.dumps(content, sort_keys=True, default=_refuse)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return key if self.width is None else f"{key}-{self.width}"


@dataclass(frozen=True)
class Entry:
    """A finished result: where its files are, and whether they were there before."""

    name: str
    key: str
    path: Path
    reused: bool
    seconds: float  # what computing it took, when it was computed
    metadata: Mapping[str, Any] = field(default_factory=dict)  # what `make` returned


class Store:
    """A folder of stage results (see the module's docstring)."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._checked: set[Path] = set()
        self._tables: dict[tuple[str, int], Recipe] = {}
        self._unchecked = False  # whether a result without digests was met, which is said once

    def path(self, recipe: Recipe) -> Path:
        return self.root / recipe.name / recipe.key

    def has(self, recipe: Recipe) -> bool:
        """Whether a finished result is there, its files as they were published; they are read once in a run."""
        path = self.path(recipe)
        if path in self._checked or not distributed.is_main():
            return path.is_dir()
        try:
            if not path.is_dir() or faults(path):
                return False
        except PermissionError as error:
            raise Stopped(f"{error.filename} belongs to a finished result, and may not be read") from None
        if not self._unchecked and "files" not in read_meta(path):
            self._unchecked = True
            log.warning(
                "%s %s comes from an older version, without digests: used unchecked", recipe.name, recipe.key
            )
        self._checked.add(path)
        return True

    def of_width(self, recipe: Recipe, width: int) -> Recipe:
        """The recipe of the narrowest finished table with at least `width` columns, else of one with `width`.

        Rank 0 looks once in a run, with every process taking part; the answer then stays.
        """
        if (recipe.key, width) not in self._tables:
            self._tables[recipe.key, width] = distributed.broadcast(self._narrowest(recipe, width))
        return self._tables[recipe.key, width]

    def _narrowest(self, recipe: Recipe, width: int) -> Recipe:
        finished = [path.name.partition("-")[2] for path in (self.root / recipe.name).glob(f"{recipe.key}-*")]
        enough = [int(name) for name in finished if name.isdigit() and int(name) >= width]
        return replace(recipe, width=min(enough, default=width))

    def get(self, recipe: Recipe, make: Make, *, collective: bool = False) -> Entry:
        """Return the recipe's result, computing it with `make(folder)` if no one has yet.

        What `make` returns, if anything, is kept as the entry's metadata.

        A failed or killed `make` leaves its `.partial` folder, and the next one is given the same folder.
        With `collective`, every process of a distributed run enters `make`; otherwise rank 0 alone does.
        Raises DiskFull where there is no room, and Stopped if the store cannot be read or written.
        """
        if not distributed.is_main():
            return self._follow(recipe, make, collective)
        with ExitStack() as held:
            try:
                found = self.has(recipe) or not self._prepare(recipe, held)
            except Exception as error:
                distributed.broadcast((False, _told(error)))
                raise
            distributed.broadcast((not found, None))
            if not found:
                try:
                    self._build(recipe, make, collective)
                except Exception as error:
                    if not collective:  # the others wait for the outcome, and take up the next stage together
                        distributed.broadcast(_told(error))
                    raise
            distributed.broadcast(None)
        return self._entry(recipe, reused=found)

    def _follow(self, recipe: Recipe, make: Make, collective: bool) -> Entry:
        """`get`, on every rank but 0."""
        must_build, failure = distributed.broadcast(None)
        if must_build and collective:
            make(self._partial(recipe))
        failure = failure or distributed.broadcast(None)
        if failure:
            text, final = failure
            raise (Stopped if final else RuntimeError)(f"rank 0 failed: {text}")
        return self._entry(recipe, reused=not must_build)

    def _prepare(self, recipe: Recipe, held: ExitStack) -> bool:
        """Lock the result until `held` is closed and make its folder; whether it must still be computed."""
        final, partial = self.path(recipe), self._partial(recipe)
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(final.with_name(recipe.key + ".lock"))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                log.info("%s %s: another job is computing it, waiting", recipe.name, recipe.key)
                lock.acquire()
            held.callback(lock.release)
            if self.has(recipe):  # another job has computed it meanwhile
                return False
            self._clear(recipe)
            if self.has(recipe):  # without what did not belong there
                return False
            partial.mkdir(exist_ok=True)
        except OSError as error:
            stopping.check_room(error, final, f"{recipe.name} {recipe.key}")
            raise Stopped(
                f"{recipe.name} {recipe.key} must be computed, and the store {self.root} cannot be written: {error}"
            ) from error
        return True

    def _clear(self, recipe: Recipe) -> None:
        """Set aside what is damaged or in the way; with the lock held."""
        final, partial = self.path(recipe), self._partial(recipe)
        if final.is_dir():
            found = faults(final)
            told = "; ".join(map(str, found[:5])) + ("; ..." if len(found) > 5 else "")
            if found and all(fault.what == EXTRA for fault in found):
                for fault in found:
                    place = self._set_aside(recipe, final / fault.name)
                    log.warning("%s %s: %s; moved to %s", recipe.name, recipe.key, fault, place)
            elif found:
                place = self._set_aside(recipe, final)
                log.warning(
                    "%s %s is damaged (%s): set aside as %s, computed again", recipe.name, recipe.key, told, place
                )
        usable = partial.is_dir() and os.access(partial, os.R_OK | os.W_OK | os.X_OK)
        for path, ready in ((final, final.is_dir()), (partial, usable)):
            if os.path.lexists(path) and not ready:
                log.warning(
                    "%s is not a folder that can be written to: set aside as %s",
                    path,
                    self._set_aside(recipe, path),
                )
        for file in partial.glob(LEFT_BEHIND):
            file.unlink()

    def _set_aside(self, recipe: Recipe, path: Path) -> Path:
        """Move `path` to where nothing looks for results, under a new name, which is returned."""
        folder = self.root / "set-aside" / recipe.name
        folder.mkdir(parents=True, exist_ok=True)
        taken = {name.rpartition("-")[2] for name in os.listdir(folder)}
        number = next(n for n in range(1, len(taken) + 2) if str(n) not in taken)
        kind = path.name if path.name.startswith(recipe.key) else f"{recipe.key}.{path.name}"
        return path.rename(folder / f"{kind}.corrupt-{number}")

    def _build(self, recipe: Recipe, make: Make, collective: bool) -> None:
        partial, work = self._partial(recipe), f"{recipe.name} {recipe.key}"
        resumed = any(not name.startswith(".") for name in os.listdir(partial))
        try:
            try:
                metadata = timed(make, partial)
            except Exception as error:
                stopping.check_room(error, partial, work)
                if collective or not resumed or not unreadable(error, partial):
                    raise
                place = self._set_aside(recipe, partial)
                log.warning(
                    "%s: an earlier run's unfinished work cannot be read (%s: %s): set aside as %s, started anew",
                    work,
                    type(error).__name__,
                    error,
                    place,
                )
                partial.mkdir()
                metadata = timed(make, partial)
            self._publish(recipe, metadata or {})
        except Exception as error:
            stopping.check_room(error, partial, work)
            raise

    def _publish(self, recipe: Recipe, metadata: Mapping[str, Any]) -> None:
        partial, final = self._partial(recipe), self.path(recipe)
        seconds = read_seconds(partial)
        (partial / SECONDS).unlink(missing_ok=True)
        for folder, _, names in os.walk(partial):
            for name in names:
                sync(Path(folder, name))  # some disks say only now that they have no room
        meta = {
            "stage": recipe.name,
            "version": recipe.version if isinstance(recipe.version, int) else dict(recipe.version),
            "key": recipe.key,
            "config": recipe.config,
            "inputs": dict(recipe.inputs),
            "seconds": round(seconds, 3),
            "metadata": dict(metadata),
            "files": list_files(partial),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **made_with(),
        }
        write_whole(partial / META, sealed(meta))
        partial.rename(final)
        sync(final.parent)
        self._checked.add(final)

    def _partial(self, recipe: Recipe) -> Path:
        return self.path(recipe).with_name(recipe.key + ".partial")

    def _entry(self, recipe: Recipe, reused: bool) -> Entry:
        meta = read_meta(path := self.path(recipe))
        metadata = meta.get("metadata", meta.get("facts", {}))  # older stores have "facts"
        return Entry(recipe.name, recipe.key, path, reused, meta["seconds"], metadata)

    def __str__(self) -> str:
        return f"computed stages in {self.root} (make clean-store removes them)"


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's content: what a stage that reads it puts into its configuration."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(error: Exception) -> tuple[str, bool]:
    """What rank 0 tells the others of a failure: the error, and whether the run ends."""
    return f"{type(error).__name__}: {error}", isinstance(error, Stopped)


def _refuse(value: Any) -> Any:
    raise TypeError(f"a stage's configuration must be plain JSON values, got {type(value).__name__}: {value!r}")
