"""Attacks x detectors x defences in one table, for the groups in which `task=defences` has left rows in the store.

A detector's cell is its mean AUROC on normalised embeddings, a defence's the attack success rate and the zero-shot
accuracy of the model that it leaves. Means are over seeds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.aggregate import GROUP_COLUMNS, case_label, case_order, group_name, is_control_case
from analysis.markdown import markdown_table
from analysis.style import CONTROLS, detector_label, detector_order
from analysis.tables import SUCCEEDED_AT, is_raw, number
from experiments.runtime.digests import faults, read_meta
from experiments.runtime.safe_text import csv_table

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

ROW = "row.json"
NOTES = (
    "Detectors: mean AUROC over seeds, on normalised embeddings. Defences: ASR, zero-shot accuracy of the model "
    "that is left.",
    "† the attack did not succeed (success rate under 50 %). ‡ control, not a detector. – not measured.",
)


def read_defences(store: Path) -> list[dict[str, Any]]:
    """The rows that `task=defences` has left in the store, oldest first; a damaged one is named and left out."""
    found = []
    for file in sorted((store / "defence").glob(f"*/{ROW}")):
        if file.parent.suffix == ".partial":
            continue
        if broken := faults(file.parent):
            log.warning("%s is damaged and left out (%s); run task=defences again", file.parent, broken[0])
            continue
        found.append(json.loads(file.read_text()) | {"created": read_meta(file.parent).get("created", "")})
    return sorted(found, key=lambda row: str(row["created"]))


def write(
    summary: pd.DataFrame, defences: Sequence[Mapping[str, Any]], folder: Path, stem: str, name: str
) -> list[Path]:
    """peers_<stem>.csv, a line for each attack and method, and .md, the table; nothing without a defence.

    summary: of the group `name` (`aggregate.aggregate`).  defences: of `read_defences`, of all groups.
    """
    table = side_by_side(summary, defences, name)
    if not (table["kind"] == "defence").any():
        return []
    files = [folder / f"peers_{stem}{suffix}" for suffix in (".csv", ".md")]
    csv_table(table).to_csv(files[0], index=False)
    files[1].write_text(markdown(table, f"Attacks, detectors and defences ({name})"), encoding="utf-8")
    return files


def side_by_side(summary: pd.DataFrame, defences: Sequence[Mapping[str, Any]], name: str) -> pd.DataFrame:
    """A row per attack and method: `kind` (detector or defence), `method`, `auroc`, `asr`, `zero_shot`, `seeds`.

    A detector's `asr` and `zero_shot` are those of the undefended models that it saw. Defences at another poison
    rate than the detectors' are left out; of a defence and a seed that were measured twice, the last counts.
    """
    import pandas as pd

    columns = ["attack", "kind", "method", "auroc", "asr", "zero_shot", "seeds", "rate"]
    found: list[dict[str, Any]] = []
    rates: dict[str, Any] = {}
    records: list[dict[str, Any]] = summary.astype(object).to_dict("records")  # type: ignore[assignment]
    for row in records:
        if str(row["case"]).endswith("@clean") or is_raw(row["normalise"]):
            continue
        rates.setdefault(row["case"], row.get("rate"))
        one = {"attack": row["case"], "kind": "detector", "method": row["detector"], "auroc": row["auroc"]}
        one |= {"asr": row["asr"], "zero_shot": row["zero_shot_top1"], "seeds": row["seeds"]}
        found.append(one | {"rate": row.get("rate")})
    last: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for kept in defences:
        of = {column: kept.get(column) for column in GROUP_COLUMNS}
        if group_name(of) == name and rates.get(kept["attack"], kept["rate"]) == kept["rate"]:
            last[kept["attack"], kept["rate"], kept["trained_on"], kept["seed"]] = kept
    if last:
        rows = pd.DataFrame(list(last.values()))
        for (attack, method), same in rows.groupby(["attack", "trained_on"], sort=False):
            one = {"attack": attack, "kind": "defence", "method": method, "auroc": float("nan")}
            one |= {"asr": same["asr"].mean(), "zero_shot": same["zero_shot_top1"].mean(), "seeds": len(same)}
            found.append(one | {"rate": same["rate"].iloc[0]})
    return pd.DataFrame(found, columns=columns)


def markdown(table: pd.DataFrame, title: str) -> str:
    """The table in Markdown: attacks are columns; the undefended models, the detectors, then the defences."""
    attacks = sorted(table["attack"].drop_duplicates(), key=case_order)
    detectors, defences = (table[table["kind"] == kind] for kind in ("detector", "defence"))
    rows = [["poisoned", *(_rate(table[table["attack"] == attack]["rate"].iloc[0]) for attack in attacks)]]
    for label, column in (("ASR", "asr"), ("zero-shot", "zero_shot"), ("seeds", "seeds")):
        rows.append([label, *(_first(detectors, attack, column) for attack in attacks)])
    for method in sorted(detectors["method"].drop_duplicates(), key=detector_order):
        label = detector_label(method) + "‡" * (method in CONTROLS)
        rows.append([label, *(_cell(detectors, attack, method, ["auroc"]) for attack in attacks)])
    for method in defences["method"].drop_duplicates():
        rows.append([f"*{method}*", *(_cell(defences, attack, method, ["asr", "zero_shot"]) for attack in attacks)])
    rows.append(["*seeds of the defences*", *(_first(defences, attack, "seeds") for attack in attacks)])
    heads = [case_label(attack) + _mark(detectors, attack) for attack in attacks]
    lines = [f"# {title}", "", *markdown_table(["", *heads], rows), "", *(f"{note}  " for note in NOTES)]
    return "\n".join(lines) + "\n"


def _mark(detectors: pd.DataFrame, attack: str) -> str:
    asr = detectors[detectors["attack"] == attack]["asr"]
    failed = len(asr) and asr.iloc[0] < SUCCEEDED_AT
    return "‡" if is_control_case(attack) else "†" if failed else ""


def _first(rows: pd.DataFrame, attack: str, column: str) -> str:
    values = rows[rows["attack"] == attack][column]
    if not len(values):
        return "–"
    return f"{int(values.max())}" if column == "seeds" else number(values.iloc[0])


def _cell(rows: pd.DataFrame, attack: str, method: str, columns: Sequence[str]) -> str:
    same = rows[(rows["attack"] == attack) & (rows["method"] == method)]
    return ", ".join(number(same[column].iloc[0]) for column in columns) if len(same) else "–"


def _rate(rate: Any) -> str:
    return "–" if rate is None or rate != rate else f"{100 * float(rate):g} %"
