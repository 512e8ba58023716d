"""The main table, written: CSV with every number, Markdown and LaTeX with attacks x detectors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.aggregate import case_label, case_order, is_control_case
from analysis.markdown import markdown_table
from analysis.style import CONTROLS, detector_label, detector_order
from analysis.tables import is_raw, number, percent

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

Row = Mapping[str, Any]


def write_tables(summary: pd.DataFrame, folder: Path, stem: str, title: str) -> list[Path]:
    """Write `<stem>.csv`, `.md` and `.tex` of what `aggregate.aggregate` gave."""
    folder.mkdir(parents=True, exist_ok=True)
    summary.to_csv(folder / f"{stem}.csv", index=False)
    (folder / f"{stem}.md").write_text(markdown(summary, title), encoding="utf-8")
    (folder / f"{stem}.tex").write_text(latex(summary, title), encoding="utf-8")
    return [folder / f"{stem}{suffix}" for suffix in (".csv", ".md", ".tex")]


class _Side:
    """One half of the table: the rows on normalised, or on raw, embeddings."""

    def __init__(self, name: str, rows: list[Row], cases: list[str], detectors: list[str]) -> None:
        self.name = name
        self.cell = {(row["case"], row["detector"]): row for row in rows}
        self.cases = cases
        self.detectors = [d for d in detectors if any(row["detector"] == d for row in rows)]

    def of_case(self, case: str) -> list[Row | None]:
        return [self.cell.get((case, detector)) for detector in self.detectors]

    def first(self, case: str) -> Row:
        return next(row for row in self.of_case(case) if row is not None)

    def best(self, case: str) -> str | None:
        """The detector, controls aside, with the highest mean AUROC."""
        rated = [
            (row["auroc"], row["detector"])
            for row in self.of_case(case)
            if row is not None and row["detector"] not in CONTROLS and row["auroc"] == row["auroc"]
        ]
        return max(rated)[1] if rated else None


def _sides(summary: pd.DataFrame) -> list[_Side]:
    """Normalised and raw; a detector that does not depend on the norm stands in both. Controls come last."""
    cases = sorted(summary["case"].drop_duplicates(), key=case_order)
    detectors = sorted(summary["detector"].drop_duplicates(), key=detector_order)
    rows: list[Row] = summary.astype(object).to_dict("records")  # type: ignore[assignment]
    split: dict[str, list[Row]] = {"normalised embeddings": [], "raw embeddings": []}
    for row in rows:
        either = row["normalise"] is None or row["normalise"] != row["normalise"]
        if either or not is_raw(row["normalise"]):
            split["normalised embeddings"].append(row)
        if either or is_raw(row["normalise"]):
            split["raw embeddings"].append(row)
    return [_Side(name, side, cases, detectors) for name, side in split.items() if side]


def _notes(summary: pd.DataFrame) -> list[str]:
    seeds = sorted({int(count) for count in summary["seeds"] if count})
    words = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0] if seeds else 0} seed(s)"
    return [
        f"AUROC, mean ± standard deviation over {words}; in brackets the 95 % bootstrap interval of the mean.",
        "† the attack did not succeed (success rate under 50 %): finding it is only finding a wrong caption.",
        "‡ control: not a backdoor, or not a detector of one. — missing cell.",
    ]


def sizes(summary: pd.DataFrame) -> dict[str, str]:
    """Case -> `, 20,000 samples`, where not all cases have as many; `, 400 to 800 samples` if its rows differ."""
    if "n" not in summary or summary["n"].nunique(dropna=True) < 2:
        return {}
    found = {}
    for case, rows in summary.groupby("case"):
        known = sorted({int(n) for n in rows["n"].dropna()})
        if known:
            found[str(case)] = f", {' to '.join(f'{n:,}' for n in dict.fromkeys((known[0], known[-1])))} samples"
    return found


def _head(row: Row, sizes: Mapping[str, str]) -> str:
    mark = "‡" if is_control_case(row["case"]) else "†" if row["attack_succeeded"] is False else ""
    return case_label(row["case"]) + sizes.get(str(row["case"]), "") + mark


def _heads(side: _Side) -> list[str]:
    return [detector_label(d) + ("‡" if d in CONTROLS else "") for d in side.detectors]


def _mean(row: Row | None) -> str:
    if row is None or row["status"] == "missing":
        return "—"
    if row["status"] == "failed":
        return "failed"
    spread = f" ± {number(row['auroc_std'])}" if row["auroc_std"] == row["auroc_std"] else ""
    return number(row["auroc"]) + spread + (" (partly)" if row["status"] == "partly" else "")


def _interval(row: Row | None) -> str:
    if row is None or row["auroc_low"] != row["auroc_low"]:
        return ""
    return f"[{number(row['auroc_low'])}, {number(row['auroc_high'])}]"


def markdown(summary: pd.DataFrame, title: str) -> str:
    """The table in Markdown: `.982 ± .010 [.961, .993]`."""
    lines = [f"# {title}", ""]
    for side in _sides(summary):
        rows = []
        for case in side.cases:
            first = side.first(case)
            row = [_head(first, sizes(summary)), percent(first["asr"]), percent(first["zero_shot_top1"])]
            rows.append([*row, *(f"{_mean(cell)} {_interval(cell)}".strip() for cell in side.of_case(case))])
        columns = ["attack", "ASR", "zero-shot", *_heads(side)]
        lines += [f"## {side.name}", "", *markdown_table(columns, rows), ""]
    return "\n".join(lines + [f"{note}  " for note in _notes(summary)]) + "\n"


def latex(summary: pd.DataFrame, title: str) -> str:
    """The table in LaTeX; the best detector of each attack in bold, controls apart.

    It needs booktabs, and graphicx, as it is scaled to the width of the text.
    """
    parts = [f"% {title}"]
    for side in _sides(summary):
        parts += [
            r"\begin{table}[t]",
            r"\centering\small",
            rf"\caption{{{_escape(title)}, {side.name}. {_escape(' '.join(_notes(summary)))}}}",
            r"\resizebox{\textwidth}{!}{%",
            r"\begin{tabular}{lr" + "c" * len(side.detectors) + "}",
            r"\toprule",
            "Attack & ASR & " + " & ".join(map(_escape, _heads(side))) + r" \\",
            r"\midrule",
        ]
        for place, case in enumerate(side.cases):
            if place and is_control_case(case) and not is_control_case(side.cases[place - 1]):
                parts.append(r"\midrule")
            first, best = side.first(case), side.best(case)
            means = [_escape(_mean(cell)) for cell in side.of_case(case)]
            means = [
                rf"\textbf{{{text}}}" if name == best else text
                for name, text in zip(side.detectors, means, strict=True)
            ]
            parts.append(
                " & ".join([_escape(_head(first, sizes(summary))), _escape(percent(first["asr"])), *means]) + r" \\"
            )
            intervals = [_interval(cell) for cell in side.of_case(case)]
            if any(intervals):
                small = [rf"{{\scriptsize {text}}}" if text else "" for text in intervals]
                parts.append(" & ".join(["", "", *small]) + r" \\[2pt]")
        parts += [r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""]
    return "\n".join(parts)


def _escape(text: str) -> str:
    replaced = {
        "\\": r"\textbackslash{}",
        "%": r"\%",
        "&": r"\&",
        "_": r"\_",
        "#": r"\#",
        "$": r"\$",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "†": r"$^\dagger$",
        "‡": r"$^\ddagger$",
        "—": "---",
        "–": "--",
    }
    return "".join(replaced.get(char, char) for char in text)


def console_table(summary: pd.DataFrame, title: str) -> Group:
    """The same on the screen: one table on normalised, one on raw embeddings."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables: list[Text | Table] = []
    for side in _sides(summary):
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("attack")
        table.add_column("ASR", justify="right")
        for head in _heads(side):
            table.add_column(head)
        for place, case in enumerate(side.cases):
            if place and is_control_case(case) and not is_control_case(side.cases[place - 1]):
                table.add_section()
            means = [_mean(cell) for cell in side.of_case(case)]
            table.add_row(_head(side.first(case), sizes(summary)), percent(side.first(case)["asr"]), *means)
        tables += [Text(f"{title}, {side.name}", style="bold"), table]
    first, *others = _notes(summary)
    return Group(*tables, Text(first.partition(";")[0] + "."), *map(Text, others))
