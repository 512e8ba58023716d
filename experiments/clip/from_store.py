"""`model=trained|finetuned`: a model folder in the store of an earlier run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from experiments.clip.checkpoint_files import refuse_other_files
from experiments.clip.model import DESCRIPTION, WEIGHTS, TrainedModel
from experiments.clip.model_folder import LIMITS
from experiments.clip.saved_model import load_model, read_description
from experiments.runtime.digests import EXTRA, faults, is_key


@dataclass(frozen=True)
class Trained:
    """Used as it is, or trained on.

    folder: `<store>/train/<key>`.
    finetune: train on from its weights, by the `train` settings; its vocabulary stays.
    """

    kind: ClassVar[str] = "trained"

    folder: str
    finetune: bool = False

    def __post_init__(self) -> None:
        missing = [name for name in (WEIGHTS, DESCRIPTION) if not (Path(self.folder) / name).is_file()]
        if missing:
            raise ValueError(
                f"model.folder must be the folder of a trained model, but {self.folder!r} holds no "
                f"{' and no '.join(missing)}; such folders are <store>/train/<key>"
            )

        found = faults(Path(self.folder)) if is_key(Path(self.folder).name) else []
        if found := [fault for fault in found if fault.what != EXTRA]:
            raise ValueError(
                f"model.folder={self.folder!r} is damaged ({found[0]}); run its training again, which "
                "sets it aside and computes it anew, or give an undamaged copy"
            )
        refuse_other_files(Path(self.folder) / WEIGHTS, "model.folder")
        _ = self.size  # checks the folder's configurations

    @property
    def trains(self) -> bool:
        return self.finetune

    @property
    def size(self) -> int:
        """Side of the input image in pixels."""
        size = read_description(Path(self.folder))["spec"].get("size", 224)
        if not isinstance(size, int) or not 0 < size <= LIMITS["image_size"]:
            raise ValueError(f"model.folder: the size in {DESCRIPTION} must be a number of pixels, got {size!r}")
        return size

    @property
    def files(self) -> tuple[str, ...]:
        """Local files whose content decides the result."""
        if self.finetune:
            return tuple(str(Path(self.folder) / name) for name in (DESCRIPTION, WEIGHTS))
        return tuple(
            sorted(str(file) for file in Path(self.folder).iterdir() if file.suffix in (".json", ".safetensors"))
        )

    def without_paths(self, config: dict[str, Any]) -> dict[str, Any]:
        """The configuration as part of a key: the same wherever the folder lies."""
        return {name: value for name, value in config.items() if name != "folder"}

    def build(self, texts: Iterable[str]) -> TrainedModel:
        """The model; `texts` is not used."""
        return load_model(Path(self.folder))
