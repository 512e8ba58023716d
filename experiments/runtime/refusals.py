"""Which errors one line explains, with what exit status, and what a refused run leaves behind.

2: what was asked for cannot be done: a value, a file or a package that is missing.  1: it was tried and failed.
None: a fault of the program, which needs its traceback.
"""

from __future__ import annotations

import logging
import shutil
import socket
import traceback
from contextlib import suppress
from pathlib import Path

from hydra.errors import InstantiationException
from omegaconf.errors import OmegaConfBaseException

import conf

log = logging.getLogger(__name__)

OURS = Path(conf.__file__).resolve().parents[1]
PACKAGES = ("attacks", "detect", "experiments", "analysis")
_INPUT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)
_EMPTY = {".hydra", "run.log", "wandb"}  # all that a run without a result has in its folder


class Diverged(RuntimeError):
    """Training left the finite numbers."""


def cause(error: BaseException) -> BaseException:
    """What was raised first, behind Hydra's own wrapping."""
    return error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error


def status(error: BaseException) -> int | None:
    """The exit status of an error that one line explains; None if it needs its traceback."""
    if isinstance(error, InstantiationException):
        return 2
    if isinstance(error, (OmegaConfBaseException, ImportError, *_INPUT)):
        return 2
    if _unreachable(error):
        return 2
    if isinstance(error, ValueError):
        return 2 if _is_ours(error) else None
    if isinstance(error, OSError):
        return 1
    return 1 if isinstance(error, RuntimeError) and _is_ours(error) else None


def line(error: BaseException) -> str:
    """The error in one line; its class stands before it where the message alone would say little."""
    first = cause(error)
    text = str(first)
    if isinstance(first, OmegaConfBaseException):
        text = text.partition("\n")[0]  # the lines below it are about OmegaConf's own objects
    text = " ".join(part.strip() for part in text.splitlines() if part.strip())
    if isinstance(error, InstantiationException) and not isinstance(first, (ValueError, ImportError)):
        key = str(error).rpartition("full_key:")[2].strip()  # with which Hydra's message ends
        return f"{key}: {type(first).__name__}: {text}"
    plain = isinstance(first, (ValueError, ImportError, RuntimeError, OmegaConfBaseException)) and text
    return text if plain else f"{type(first).__name__}: {text}"


def report(what: str, error: BaseException) -> None:
    """Log that one of several parts failed; with the traceback if one line does not explain it."""
    log.error("%s failed: %s", what, line(error), exc_info=error if status(error) is None else None)


def forget(folder: Path) -> None:
    """Remove the folder of a run that was refused, unless it holds a result; then its parents if they are empty."""
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - _EMPTY:
        return
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        for parent in list(folder.parents)[:2]:  # runs/<date>
            parent.rmdir()


def _is_ours(error: BaseException) -> bool:
    """Whether a `raise` of our own code made it, rather than a library that our code has misused."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return True
    place = Path(frames[-1].filename).resolve()
    return (
        place.is_relative_to(OURS)
        and place.relative_to(OURS).parts[0] in (*PACKAGES, "run.py")
        and (frames[-1].line or "raise").startswith("raise")
    )


def _unreachable(error: BaseException | None) -> bool:
    """Whether the network is behind it: clients wrap its errors in classes of their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
