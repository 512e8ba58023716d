"""Whether a training's checkpoint can be read; one that cannot is set aside."""

from __future__ import annotations

import logging
import pickle
import zipfile
from pathlib import Path

import torch

log = logging.getLogger(__name__)


def is_sound(file: Path) -> bool:
    """Whether there is a checkpoint, whole and as it was written; a damaged one gets another name."""
    if not file.exists():
        return False
    try:
        with zipfile.ZipFile(file) as parts:  # torch does not compare the checksums
            changed = parts.testzip()
        if changed is None:
            torch.load(file, map_location="meta", weights_only=True)
            return True
        what = f"{changed} has another checksum"
    except (OSError, EOFError, KeyError, RuntimeError, ValueError, zipfile.BadZipFile, pickle.PickleError) as error:
        what = f"{type(error).__name__}: {(str(error).splitlines() or ['cut short'])[0]}"
    number = sum(1 for _ in file.parent.glob(f"{file.stem}.corrupt-*")) + 1
    place = file.rename(file.with_name(f"{file.stem}.corrupt-{number}"))
    log.warning("train: %s cannot be read (%s): set aside as %s, training starts anew", file, what, place.name)
    return False
