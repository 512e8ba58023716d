"""Detectors that know no truth, compared with the best k that an oracle could choose.

k-dist, LOF, SLOF and DAO depend on k. Which k is best depends on the number of poisons, which nobody knows
beforehand. Their best cell over a sweep of k is therefore a bound, not a result.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analysis.aggregate import OF_ATTACK, case_label, case_order, is_control_case, usual
from analysis.markdown import markdown_table
from analysis.style import detector_label
from analysis.tables import is_raw, number, percent

if TYPE_CHECKING:
    import pandas as pd

DENSITY = ("kdist", "lof", "slof", "dao")
WITHOUT = ("tandem", "flicker")  # their k, if they have one, is the usual one
SWEPT = 4  # values of k at least


def oracle_k(rows: pd.DataFrame) -> pd.DataFrame | None:
    """A row per attack, rate and seed: the best of DENSITY over k (`best`, `best_detector`, `best_k`), and the
    AUROC of each detector in WITHOUT, on normalised embeddings; None if no sweep of k is there.
    """
    import pandas as pd

    rows = rows[(rows["status"] == "ok") & ~rows["normalise"].map(is_raw) & rows["auroc"].notna()]
    rows = rows[~rows["case"].map(is_control_case)]
    of_model = [column for column in ("case", *OF_ATTACK, "seed") if column in rows and column != "n"]
    found = []
    for _, same in rows.groupby(of_model, sort=False, dropna=False):
        density = usual(same[same["detector"].isin(DENSITY)], free=["k"])
        if density["k"].nunique() < SWEPT:
            continue
        best = density.sort_values("auroc").iloc[-1]
        row = {name: best.get(name) for name in ("case", "rate", "seed", "n_poison", "asr")}
        row |= {"best": best["auroc"], "best_detector": best["detector"], "best_k": int(best["k"])}
        for name in WITHOUT:
            own = usual(same[same["detector"] == name])
            row[name] = own["auroc"].iloc[-1] if len(own) else float("nan")
        found.append(row)
    if not found:
        return None
    return pd.DataFrame(found).sort_values(
        ["rate", "case", "seed"], key=lambda column: column.map(case_order) if column.name == "case" else column
    )


def write(rows: pd.DataFrame, folder: Path, stem: str, title: str) -> list[Path]:
    """oracle_k_<stem>.csv and .md, if a sweep of k is there."""
    table = oracle_k(rows)
    if table is None:
        return []
    files = [folder / f"oracle_k_{stem}{suffix}" for suffix in (".csv", ".md")]
    table.to_csv(files[0], index=False)
    files[1].write_text(markdown(table, title), encoding="utf-8")
    return files


def markdown(table: pd.DataFrame, title: str) -> str:
    """The table in Markdown; the last column is how far Tandem is above (+) or below (-) the bound."""
    heads = ["attack", "poisoned", "seed", "ASR", "Tandem", "Flicker", "oracle-chosen k", "difference"]
    rows = []
    for row in table.to_dict("records"):
        difference = row["tandem"] - row["best"]
        bound = f"{number(row['best'])} ({detector_label(row['best_detector'])}, k = {row['best_k']})"
        cells = [
            case_label(row["case"]),
            f"{100 * row['rate']:g} %",
            str(row["seed"]),
            percent(row["asr"]),
            number(row["tandem"]),
            number(row["flicker"]),
            bound,
            f"{difference:+.3f}" if difference == difference else "–",
        ]
        rows.append(cells)
    return "\n".join([f"# {title}", "", *markdown_table(heads, rows)]) + "\n"
