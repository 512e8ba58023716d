"""Which values a detector may see: the embeddings, and what it needs beside them. Labels are never among these.

The evaluation of a detector's scores takes the labels as well.
"""

from __future__ import annotations

from detect import LocalDetector
from experiments.pipeline.experiment import Experiment, ScoreSpec
from experiments.pipeline.graph import Call

PROVIDERS = {
    "views": "views",
    "drift": "drift",
    "earlier": "earlier",
    "losses": "losses",
    "encoder": "model",
    "captions": "captions",
    "images": "images",
}
"""What a detector may need beside embeddings -> the value that provides it."""


def detector_inputs(experiment: Experiment, spec: ScoreSpec) -> dict[str, Call]:
    """The values that the detector of `spec` takes, by parameter of its stage."""
    detector = experiment.detector(spec)
    calls = {need: Call(PROVIDERS[need]) for need in sorted(detector.needs) if need in PROVIDERS}
    if isinstance(detector, LocalDetector):
        width = experiment.table_width(detector.search)
        calls["neighbours"] = Call("neighbours", {"search": detector.search, "k": width})
    return {"embeddings": Call("embeddings")} | calls


def cell_inputs(experiment: Experiment, spec: ScoreSpec) -> dict[str, Call]:
    """The values that the evaluation of `spec` takes: labels, measures of the model, and the detector's scores."""
    shared = {name: Call(name) for name in ("pairs", "truth", "holds_target", "measures")}
    return shared | {"scores": Call("scores", {"spec": spec})}
