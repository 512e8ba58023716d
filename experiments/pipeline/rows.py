"""A row of the results table: what all rows of a run share, a detector's settings, and its metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect import LocalDetector, Scores, evaluate
from experiments.pipeline.experiment import ScoreSpec

if TYPE_CHECKING:
    from experiments.pipeline.values import Scored

SUCCEEDED = 0.5  # below this attack success rate a detector that finds the poisons finds only wrong captions


@dataclass(frozen=True)
class RunMetadata:
    """What every row of a run shares."""

    shared: Mapping[str, Any]

    @classmethod
    def of(cls, labels: Mapping[str, Any], measures: Mapping[str, Any], truth: np.ndarray) -> RunMetadata:
        """labels: of the experiment.  measures: zero-shot accuracy and attack success.  truth: (n,) bool."""
        asr = measures.get("asr")
        return cls(
            {
                **labels,
                "n": len(truth),
                "n_poison": int(truth.sum()),
                "asr": asr,
                "attack_succeeded": None if asr is None else asr >= SUCCEEDED,
                **{name: value for name, value in measures.items() if name != "asr"},
            }
        )

    def row(self, spec: ScoreSpec, detector: Any) -> dict[str, Any]:
        """A cell's row before it has metrics."""
        n = self.shared["n"]
        row = dict(self.shared) | {"detector": spec.detector, "normalise": spec.normalise}
        if isinstance(detector, LocalDetector):
            size = min(n, detector.batch_size) if detector.scope == "batch" else n
            row |= {
                "scope": detector.scope,
                "scope_size": size,
                "poisons_per_scope": self.shared["n_poison"] * size / n,
                "k": detector.k,
                "modality": detector.modality,
                "convention": detector.definition,
            }
        return row


def write_cell(
    folder: Path, row: dict[str, Any], ids: np.ndarray, truth: np.ndarray, holds_target: np.ndarray, scored: Scored
) -> None:
    """Write cell.json, the row with its metrics, and scores.parquet."""
    import pandas as pd

    values = scored.values
    row = row | {"status": "ok", "error": "", "seconds": scored.seconds, "memory_mb": scored.memory_mb}
    row |= dict.fromkeys(("auroc", "auprc", "fpr95", "fpr100"), math.nan)
    if 0 < truth.sum() < len(truth):
        metrics = evaluate(Scores(ids, values), truth)
        row |= {name: getattr(metrics, name) for name in ("auroc", "auprc", "fpr95", "fpr100")}
        row |= {f"recall_at_{round(100 * share)}pct": found for share, found in metrics.recall_at.items()}
    named = holds_target[~truth]
    if 0 < named.sum() < len(named):
        # The control: clean samples of the target class should look like any other clean sample.
        row["auroc_clean_target"] = evaluate(Scores(ids[~truth], values[~truth]), named).auroc
    frame = pd.DataFrame({"id": ids, "score": values, "is_poison": truth})
    frame.to_parquet(folder / "scores.parquet", index=False)
    (folder / "cell.json").write_text(json.dumps(row, indent=1))
