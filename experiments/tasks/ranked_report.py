"""What a ranking out of core leaves to look at: the page of suspects and summary.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.markdown import markdown_table
from analysis.pages import suspects as page
from experiments.data.unscored import SCORED, unscored_lines
from experiments.runtime.safe_text import printable
from experiments.tasks.decisions import POISON, decided_lines
from experiments.tasks.groups import Grouping
from experiments.tasks.ranking import Ranked, Ranking
from experiments.tasks.scan_result import group_numbers

if TYPE_CHECKING:
    import pandas as pd

    from experiments.tasks.group_measures import Group
    from experiments.tasks.merged_suspects import MergedSuspects

PAGE, SUMMARY = "suspects.html", "summary.md"


@dataclass(frozen=True)
class Suspects:
    """What the page shows, in the form that it takes (`analysis.pages.suspects.ScanResult`)."""

    table: pd.DataFrame
    order: np.ndarray
    detectors: list[str]
    ranked_by: list[str]
    samples: MergedSuspects
    groups: list[Group]
    metadata: dict[str, Any]
    truth: None = None
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def write_report(ranking: Ranking, ranked: Ranked, detectors: Sequence[str], out: Path, gallery: int) -> str:
    """suspects.html, where the parts have left suspects, and summary.md; returns the latter."""
    from experiments.runtime.atomic import write_whole

    counts = _counts(ranked)
    shown = _suspects(ranking, ranked, detectors)
    (out / PAGE).unlink(missing_ok=True)  # of an earlier ranking
    if shown is not None:
        page.write(shown, out / PAGE, gallery, counts, ranked.histogram)
    text = _summary(ranking, ranked, shown, out)
    write_whole(out / SUMMARY, text)
    return text


def _counts(ranked: Ranked) -> dict[str, Any]:
    """What became of the samples, as `cleaned_copy.tally` counts it."""
    unscored = Counter(ranked.unscored)
    removed, decided = ranked.removed, ranked.changes.decided
    found: dict[str, Any] = {"members": ranked.n + sum(unscored.values()), "kept": ranked.n - ranked.removed}
    if decided is not None:
        poison = decided[(decided["status"] != SCORED) & (decided["decision"] == POISON)]
        unscored -= Counter(poison["status"])
        removed += len(poison)
        found["decisions"] = dict(sorted(Counter(decided["decision"]).items()))
    return {**found, "removed": removed, "unscored": dict(unscored)}


def _suspects(ranking: Ranking, ranked: Ranked, detectors: Sequence[str]) -> Suspects | None:
    if ranked.groups is None:
        return None
    samples, groups, facts = ranked.groups.samples, ranked.groups.groups, ranked.groups.facts
    table = samples.table.assign(group=group_numbers(groups, len(samples)))
    order = np.argsort(table["rank"].to_numpy()[: samples.shown], kind="stable")
    known, number = ranked.addresses
    rows = [
        {
            "domain": domain,
            "suspects": removed,
            "samples": n,
            "share": removed / n,
            "lift": lift,
            "examples": [str(key) for key in examples if key is not None],
        }
        for domain, n, removed, lift, examples in ranked.unusual
    ]
    metadata = {
        "data": facts.data,
        "model": facts.model,
        "n": ranked.n,
        "members": ranked.n + sum(ranked.unscored.values()),
        "unscored": ranked.unscored,
        "lost": dict(facts.lost),
        "parts": len(ranking.files),
        "truth": None,
        "captions": any(samples.captions),
    }
    if known:
        metadata["domains"] = {"suspects": ranked.removed, "samples": known, "domains": number, "rows": rows}
    return Suspects(table, order, list(detectors), list(ranking.by), samples, groups, metadata)


def _summary(ranking: Ranking, ranked: Ranked, shown: Suspects | None, out: Path) -> str:
    """summary.md: what was ranked, what is removed, from where, and what to do next."""
    lines = [
        "# Ranked",
        "",
        f"{ranked.n:,} samples of {len(ranking.files):,} files, by {', '.join(ranking.by)}.",
        *_removed_lines(ranking, ranked),
        *unscored_lines(ranked.unscored, {} if shown is None else shown.metadata["lost"], "not ranked"),
    ]
    if shown is not None:
        lines += ["", "## Groups that a model could learn", "", *page.group_lines(shown.groups), *_gaps(ranked)]
        lines += ["", "## Most suspicious samples", "", *page.suspect_lines(shown)]
    if ranked.domains:
        rows = [(name or "(none)", n, removed, f"{lift:.1f}") for name, n, removed, lift in ranked.domains[:10]]
        lines += ["", *markdown_table(["domain", "samples", "removed", "lift"], rows)]
    files = [
        "scores.parquet (every ranked sample: score, p, rank)",
        "removed.parquet (what goes, with all columns, by rank)",
        "kept.parquet"
        + (" and kept.txt" if "id" in ranking.columns and not ranked.repeated else "")
        + " (what stays)",
        f"suspects.parquet (the first {min(ranking.top, ranked.n):,})",
        *["domains.parquet"][: len(ranked.domains)],
    ]
    lines += ["", f"In {printable(out)}: {', '.join(files)}. To clean, keep the samples of kept.parquet."]
    if ranked.repeated:
        lines += [
            "",
            "**Samples of several parts have the same id, as their shards are named alike.** kept.parquet names "
            "the part of each. There is no kept.txt, and decisions about such samples need other names of shards.",
        ]
    if shown is not None:
        lines += [
            "",
            f"Look and decide: open {printable((out / PAGE).absolute())} in a browser. Then run the same command "
            "with --decisions decisions.csv.",
        ]
    else:
        lines += ["", "There is no page: no part has a file suspects-<number>.parquet beside it."]
    return "\n".join(lines) + "\n"


def _removed_lines(ranking: Ranking, ranked: Ranked) -> list[str]:
    taken = ranked.groups.groups if ranked.groups and ranking.remove_groups and ranking.remove.given else []
    alarming = [group for group in taken if group.alarming]
    number = len(np.unique(np.concatenate([group.rows for group in alarming]))) if alarming else 0
    groups = f", or are in {len(alarming)} alarming groups of {number:,}" if alarming else ""
    decided, gone = ranked.changes.decided, f"{ranked.removed:,} ({ranked.removed / ranked.n:.3%})"
    if decided is None:
        return [f"{gone} lie beyond the threshold ({ranking.remove}){groups}."]
    rule = f"threshold: {ranking.remove}{groups}" if ranking.remove.given else "no threshold"
    return [
        f"{gone} are removed ({rule}).",
        *decided_lines(decided, keep_unscored=False),
    ]


def _gaps(ranked: Ranked) -> list[str]:
    """What the groups do not know."""
    if (groups := ranked.groups) is None:
        return []
    asked = Grouping(**groups.facts.grouping).number(ranked.n)
    lines = [f"Groups start from the {asked:,} samples that rank highest."]
    if groups.without:
        lines.append(f"**{groups.without:,} parts have left no suspects, and are in no group.**")
    if groups.missing:
        lines.append(f"{groups.missing:,} of these were not grouped, as their part has not left them.")
    if groups.samples.left_out:
        lines.append(f"{groups.samples.left_out:,} samples that the parts have left were too many to be compared.")
    return ["", " ".join(lines)]
