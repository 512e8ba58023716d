"""Detectors that know no truth, compared with the best k and scope that an oracle could choose.

k-dist, LOF, SLOF and DAO depend on k and on the size of the scope. Which are best depends on the number of poisons,
which nobody knows beforehand. Their best cell over a sweep of both is therefore a bound, not a result.
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
WITHOUT = ("pursuit", "drift_pursuit", "multiscale", "drift", "tandem", "flicker")  # with their usual k
SWEPT = 4  # values of k at least


def oracle_k(rows: pd.DataFrame) -> pd.DataFrame | None:
    """A row per attack, rate and seed: the best of DENSITY over k and scope (`best`, `best_detector`, `best_k`,
    `best_scope`), and the AUROC of each detector in WITHOUT, on normalised embeddings; None without a sweep of k.
    """
    import pandas as pd

    rows = rows[(rows["status"] == "ok") & ~rows["normalise"].map(is_raw) & rows["auroc"].notna()]
    rows = rows[~rows["case"].map(is_control_case)]
    of_model = [column for column in ("case", *OF_ATTACK, "seed") if column in rows and column != "n"]
    found = []
    for _, same in rows.groupby(of_model, sort=False, dropna=False):
        density = usual(same[same["detector"].isin(DENSITY)], free=["k", "scope_size"])
        if density["k"].nunique() < SWEPT:
            continue
        best = density.sort_values("auroc").iloc[-1]
        row = {name: best.get(name) for name in ("case", "rate", "seed", "n_poison", "asr")}
        row |= {"best": best["auroc"], "best_detector": best["detector"], "best_k": int(best["k"])}
        row["best_scope"] = best.get("scope_size")
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
    """The table in Markdown; the last columns are how far each detector is above (+) or below (-) the bound."""
    shown = [name for name in WITHOUT if table[name].notna().any()]
    labels = [detector_label(name) for name in shown]
    heads = ["attack", "poisoned", "seed", "ASR", "the oracle's choice", *labels]
    rows = []
    for row in table.to_dict("records"):
        scope = row["best_scope"]
        among = f" of {scope:,.0f}" if scope == scope and scope is not None else ""
        bound = f"{number(row['best'])} ({detector_label(row['best_detector'])}, k = {row['best_k']}{among})"
        cells = [case_label(row["case"]), f"{100 * row['rate']:g} %", str(row["seed"]), percent(row["asr"]), bound]
        rows.append(cells + [_beside(row[name], row["best"]) for name in shown])
    return "\n".join([f"# {title}", "", *markdown_table(heads, rows)]) + "\n"


def _beside(value: float, bound: float) -> str:
    return f"{number(value)} ({value - bound:+.3f})" if value == value else "–"
