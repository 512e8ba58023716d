"""Detectors of poisoned samples in embedding space; usable without Hydra and without the other packages.

    from detect import DAO
    scores = DAO(k=16).score(embeddings)  # (n, d) array -> (n,), higher is more suspicious

Names are loaded on first use, so that `import detect` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from detect.abl import ABL
    from detect.base import Detector, LocalDetector
    from detect.bdetclip import BDetCLIP
    from detect.cleanlab import Cleanlab
    from detect.clip_score import CLIPScore
    from detect.cognitive_distillation import CognitiveDistillation
    from detect.dao import DAO
    from detect.drift import Drift
    from detect.drift_density import DriftDensity
    from detect.embeddings import DetectorInputs, Embeddings
    from detect.flicker import Flicker
    from detect.forest import IsolationForest
    from detect.kdist import KDistance
    from detect.lid import LID
    from detect.lof import LOF
    from detect.metrics import Metrics, Scores, evaluate
    from detect.norm import Norm
    from detect.pyod import PyOD
    from detect.safeclip import SafeCLIP
    from detect.search.neighbours import Neighbours, NeighbourSearch, find_neighbours
    from detect.slof import SLOF
    from detect.subspace import SubspaceDetection
    from detect.tandem import Tandem

__version__ = "0.1.0"

_HOME = {
    "ABL": "abl",
    "BDetCLIP": "bdetclip",
    "CLIPScore": "clip_score",
    "Cleanlab": "cleanlab",
    "CognitiveDistillation": "cognitive_distillation",
    "DAO": "dao",
    "Detector": "base",
    "Drift": "drift",
    "DriftDensity": "drift_density",
    "Embeddings": "embeddings",
    "DetectorInputs": "embeddings",
    "Flicker": "flicker",
    "IsolationForest": "forest",
    "KDistance": "kdist",
    "LID": "lid",
    "LOF": "lof",
    "LocalDetector": "base",
    "Metrics": "metrics",
    "NeighbourSearch": "search.neighbours",
    "Neighbours": "search.neighbours",
    "Norm": "norm",
    "PyOD": "pyod",
    "SLOF": "slof",
    "SafeCLIP": "safeclip",
    "Scores": "metrics",
    "SubspaceDetection": "subspace",
    "Tandem": "tandem",
    "evaluate": "metrics",
    "find_neighbours": "search.neighbours",
}

__all__ = [
    "ABL",
    "DAO",
    "LID",
    "LOF",
    "SLOF",
    "BDetCLIP",
    "CLIPScore",
    "Cleanlab",
    "CognitiveDistillation",
    "Detector",
    "Drift",
    "DriftDensity",
    "Embeddings",
    "DetectorInputs",
    "Flicker",
    "IsolationForest",
    "KDistance",
    "LocalDetector",
    "Metrics",
    "NeighbourSearch",
    "Neighbours",
    "Norm",
    "PyOD",
    "SafeCLIP",
    "Scores",
    "SubspaceDetection",
    "Tandem",
    "evaluate",
    "find_neighbours",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'detect' has no attribute {name!r}; it has {sorted(_HOME)}")
    value = getattr(import_module(f"detect.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
