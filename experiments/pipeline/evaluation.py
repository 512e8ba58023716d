"""From scores to rows of the results table: every cell of a study, and what all of them share."""

from __future__ import annotations

import functools
import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attacks import PoisonedPairs
from detect import Embeddings, LocalDetector, Scores, evaluate
from experiments.pipeline.study import Study, Variant
from experiments.pipeline.sweep import CellCounts
from experiments.runtime import distributed, refusals, stopping
from experiments.runtime.atomic import write_whole
from experiments.runtime.store import Entry, Stage

log = logging.getLogger(__name__)
EMBEDDED = 0.5  # attack success rate under which finding the poison is only finding a wrong caption


@dataclass(frozen=True)
class Cell:
    """One attack x one detector x one seed: a row of the results table, and the scores behind it."""

    row: dict[str, Any]
    scores: np.ndarray | None  # (n,), None for a failed cell
    reused: bool = False  # it had been in the store


@dataclass(frozen=True)
class RunResult:
    """Everything a report is made of."""

    cells: list[Cell]
    pairs: PoisonedPairs
    truth: np.ndarray  # (n,) bool: what there was to be found
    embeddings: Embeddings
    facts: dict[str, Any]
    history: list[dict[str, Any]]  # one dictionary of measures per epoch of training

    @property
    def tally(self) -> CellCounts:
        failed = sum(cell.row["status"] == "failed" for cell in self.cells)
        reused = sum(cell.reused for cell in self.cells)
        return CellCounts(len(self.cells) - failed - reused, reused, failed)


class Evaluation:
    """The cells of one study."""

    def __init__(self, study: Study) -> None:
        self.study = study

    @functools.cached_property
    def facts(self) -> dict[str, Any]:
        """What every row of this run shares."""
        study, attack = self.study, self.study.attack
        measures = json.loads((study.examine_entry.path / "measures.json").read_text())
        asr = measures.pop("asr", None)
        return {
            "attack": attack.name,
            "rate": attack.rate,
            "captions": attack.captions,
            "target": ", ".join(sorted(set(attack.targets.values()))),
            "data": type(study.data).__name__.lower(),
            "test_set": study.eval.name,
            "model": getattr(study.model_spec, "name", study.model_spec.kind),
            "scale": study.config.scale.name,
            "train_on": study.config.train_on,
            "epochs": study.training.epochs if study.model_spec.trains else 0,
            "seed": study.seed,
            "n": len(study.pairs),
            "n_poison": int(study.truth.sum()),
            "asr": asr,
            "attack_succeeded": None if asr is None else asr >= EMBEDDED,
            **measures,
        }

    def row(self, variant: Variant) -> dict[str, Any]:
        """A cell's row before anything was computed for it."""
        name, normalise = variant
        detector, n = self.study.variant(variant), self.facts["n"]
        row = self.facts | {"detector": name, "normalise": normalise}
        if isinstance(detector, LocalDetector):
            size = min(n, detector.batch_size) if detector.scope == "batch" else n
            row |= {
                "scope": detector.scope,
                "scope_size": size,
                "poisons_per_scope": self.facts["n_poison"] * size / n,
                "k": detector.k,
                "modality": detector.modality,
                "convention": detector.definition,
            }
        return row

    def warn_of_collapse(self) -> None:
        """Say so when the poisons of a scope can be each other's k nearest neighbours."""
        seen = set()
        for name, flag in self.study.variants():
            row = self.row((name, flag))
            if (
                name in seen
                or not self.study.detectors[name].collapses_beyond_k
                or row["poisons_per_scope"] <= row["k"]
            ):
                continue
            seen.add(name)
            log.warning(
                "%s: about %.0f poisons in a scope of %d, and k = %d: scores collapse once poisons are each "
                "other's neighbours; raise k or use a smaller scope",
                name, row["poisons_per_scope"], row["scope_size"], row["k"],
            )  # fmt: skip

    def cell(self, variant: Variant) -> Cell:
        """The cell's row and scores; a failure becomes a visible hole, with its error."""
        import pandas as pd

        stage = self._stage(variant)
        hole = self.study.store.path(stage).with_suffix(".failed.json")
        try:
            scored = self.study.score_entry(variant)
            entry = self.study.get(stage, lambda folder: self._evaluate(variant, scored, folder), quiet=True)
        except Exception as error:
            if stopping.reason(error):  # as a full disk: all others would fail as well
                raise
            refusals.report(variant[0], error)
            row = self.row(variant) | {"status": "failed"}
            row["error"] = f"{type(error).__name__}: {error}"
            if distributed.is_main():
                hole.parent.mkdir(parents=True, exist_ok=True)
                write_whole(hole, json.dumps(row, indent=1))
            return Cell(row, None)
        if distributed.is_main() and hole.exists():
            hole.unlink()
        scores = pd.read_parquet(entry.path / "scores.parquet", columns=["score"])["score"].to_numpy()
        return Cell(json.loads((entry.path / "cell.json").read_text()), scores, entry.reused)

    def _stage(self, variant: Variant) -> Stage:
        inputs = {"score": self.study.score_stage(variant).key, "plan": self.study.plan_entry.key}
        return Stage("evaluate", 2, {"row": self.row(variant)}, inputs)

    def _evaluate(self, variant: Variant, scored: Entry, folder: Path) -> None:
        import pandas as pd

        ids, truth = np.asarray(self.study.pairs.ids), self.study.truth
        values = np.load(scored.path / "scores.npy")
        row = self.row(variant) | {"status": "ok", "error": "", "seconds": scored.seconds}
        row["memory_mb"] = scored.facts.get("memory_mb")
        row |= dict.fromkeys(("auroc", "auprc", "fpr95", "fpr100"), math.nan)
        if 0 < truth.sum() < len(truth):
            metrics = evaluate(Scores(ids, values), truth)
            row |= {name: getattr(metrics, name) for name in ("auroc", "auprc", "fpr95", "fpr100")}
            row |= {f"recall_at_{round(100 * share)}pct": found for share, found in metrics.recall_at.items()}
        named = self.study.holds_target[~truth]
        if 0 < named.sum() < len(named):
            # The control: clean samples of the target class should look like any other clean sample.
            row["auroc_clean_target"] = evaluate(Scores(ids[~truth], values[~truth]), named).auroc
        frame = pd.DataFrame({"id": ids, "score": values, "is_poison": truth})
        frame.to_parquet(folder / "scores.parquet", index=False)
        (folder / "cell.json").write_text(json.dumps(row, indent=1))


def run(study: Study) -> RunResult:
    """Run every stage of a study, or take it from the store."""
    evaluation = Evaluation(study)
    _ = study.embeddings  # what all detectors need fails once, and ends the run
    evaluation.warn_of_collapse()
    cells = [evaluation.cell(variant) for variant in study.variants()]
    failed = sum(cell.row["status"] == "failed" for cell in cells)
    log.info("%-10s %d cells, %d failed", "evaluate", len(cells), failed)
    return RunResult(cells, study.pairs, study.truth, study.embeddings, evaluation.facts, study.history)
