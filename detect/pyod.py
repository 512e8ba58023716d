"""Any outlier detector of PyOD (Zhao, Nasrullah, Li, JMLR 2019), by its name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

import numpy as np

from detect.base import INSTALL, Detector
from detect.embeddings import DetectorInputs, unit


@dataclass(frozen=True, kw_only=True)
class PyOD(Detector):
    """PyOD's `decision_scores_`, in which higher is an outlier.

    name: the class, such as ECOD, HBOS, PCA, KNN, COPOD.  options: what its constructor takes.
    """

    norm_sensitive: ClassVar[bool] = True
    packages: ClassVar[tuple[str, ...]] = ("pyod",)

    name: str = "ECOD"
    options: Mapping[str, Any] = field(default_factory=dict)
    normalise: bool = False
    seed: int = 0

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        kind = pyod_class(self.name)
        options = dict(self.options)
        if "random_state" in inspect.signature(kind).parameters:
            options.setdefault("random_state", self.seed)
        image = inputs.embeddings.image
        image = unit(image) if self.normalise else image.copy()
        return kind(**options).fit(image).decision_scores_


def pyod_class(name: str) -> Any:
    """PyOD's detector class of that name, in any case.

    Raises ImportError without PyOD, and ValueError with the choices for a name it does not have.
    """
    try:
        models = import_module("pyod.models")
    except ImportError as error:
        raise ImportError(f"detector pyod needs the package pyod: {INSTALL}") from error
    modules = {
        module.name.replace("_", ""): module.name
        for module in iter_modules(models.__path__)
        if not module.name.startswith(("_", "base", "sklearn_base"))
    }
    wanted = name.lower().replace("_", "")
    if wanted not in modules:
        close = difflib.get_close_matches(wanted, modules, n=1)
        hint = f"; did you mean {close[0].upper()}?" if close else "."
        raise ValueError(f"PyOD has no detector {name!r}{hint} It has {', '.join(sorted(modules))}")
    module = import_module(f"pyod.models.{modules[wanted]}")
    for label, value in vars(module).items():
        if inspect.isclass(value) and label.lower().replace("_", "") == wanted:
            return value
    raise ValueError(f"PyOD's module {modules[wanted]} holds no detector of its own name")
