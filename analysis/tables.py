"""Rows of cells -> a DataFrame -> the table that a run prints.

A *cell* is one attack x one detector x one seed (and raw or normalised embeddings). A failed cell stays in
every table as a visible hole with its error; a control is marked; an attack that did not succeed says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from analysis.style import CONTROL_ATTACKS, CONTROLS, attack_label, detector_label

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group
    from rich.table import Table

LEADING = (
    "attack",
    "detector",
    "normalise",
    "scope",
    "scope_size",
    "modality",
    "k",
    "seed",
    "n",
    "n_poison",
    "auroc",
    "auprc",
    "fpr95",
    "fpr100",
    "recall_at_1pct",
    "recall_at_5pct",
    "recall_at_10pct",
    "zero_shot_top1",
    "asr",
    "attack_succeeded",
    "seconds",
    "memory_mb",
    "status",
    "error",
)
MEASURES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "fpr95": "FPR at 95 % TPR",
    "fpr100": "FPR at 100 % TPR",
    "recall_at_1pct": "recall at 1 % removed",
}
SUCCEEDED_AT = 0.5  # an attack with a lower success rate did not succeed


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row per cell: the well-known columns first and always there, the rest in order of appearance."""
    import pandas as pd

    table = pd.DataFrame(list(rows))
    rest = [column for column in table.columns if column not in LEADING]
    table = table.reindex(columns=[*LEADING, *rest])
    numbers = [*MEASURES, "zero_shot_top1", "asr", "seconds", "memory_mb"]
    table[numbers] = table[numbers].apply(pd.to_numeric, errors="coerce")
    table["status"] = table["status"].fillna("ok")
    return table


def is_raw(normalise: Any) -> bool:
    """Whether a cell scored raw embeddings. None (the norm makes no difference) counts as normalised."""
    return normalise is not None and normalise == normalise and not bool(normalise)


def is_control(row: Mapping[str, Any]) -> bool:
    """Whether a cell is a control by its detector, or because its model was trained without the poison."""
    return str(row["detector"]) in CONTROLS or row.get("train_on") == "clean"


def cell_label(row: Mapping[str, Any], among: Sequence[Mapping[str, Any]]) -> str:
    """The detector's printed name, with whatever else tells its cells apart among the given ones."""
    same = [other for other in among if other["detector"] == row["detector"]]
    parts = [detector_label(str(row["detector"]))]
    for key in ("scope", "modality", "k", "scope_size", "seed"):
        if len({str(other.get(key)) for other in same}) > 1:
            parts.append(f"{key.replace('_', ' ')} {row.get(key)}")
    return ", ".join(parts)


def percent(value: Any, digits: int = 1) -> str:
    """0.985 -> '98.5 %'; a missing value -> '–'."""
    return "–" if value is None or value != value else f"{100 * float(value):.{digits}f} %"


def number(value: Any, digits: int = 3) -> str:
    """0.98512 -> '.985'; 0.9996 -> '1.00', as wide as the others; a missing value -> '–'."""
    if value is None or value != value:
        return "–"
    text = f"{float(value):.{digits}f}"
    return text[1:] if text.startswith("0.") else text[: digits + 1]


def warnings(metadata: Mapping[str, Any]) -> list[str]:
    """What a reader must know before believing a run's table."""
    said: list[str] = []
    if metadata.get("train_on") == "clean":
        said.append("control: the model was trained on the clean data, so it learned no backdoor.")
    attack, asr = str(metadata.get("attack", "")), metadata.get("asr")
    if attack in CONTROL_ATTACKS:
        said.append(f"control: {CONTROL_ATTACKS[attack]}; what is found here is not a backdoor.")
    elif not said and asr is not None and asr == asr and float(asr) < SUCCEEDED_AT:
        said.append(
            f"the attack did not succeed (attack success rate {percent(asr)} < {percent(SUCCEEDED_AT, 0)}): "
            "finding its samples is then only finding wrong captions."
        )
    said += [str(line) for line in metadata.get("warnings", ())]
    return said


def summary(metadata: Mapping[str, Any]) -> str:
    """The lines above a run's table: what was attacked, how well the model learned it, and the counts."""
    attack = str(metadata.get("attack", "?"))
    parts = [f"attack {attack_label(attack)}"]
    if metadata.get("data") is not None:
        parts[0] += f" on {metadata['data']}"
    n, poisons = metadata.get("n"), metadata.get("n_poison")
    if n:
        parts.append(f"{n:,} samples" + (f", {poisons:,} poisoned ({percent(poisons / n, 2)})" if poisons else ""))
    if metadata.get("seed") is not None:
        parts.append(f"seed {metadata['seed']}")
    learned = f"zero-shot accuracy {percent(metadata.get('zero_shot_top1'))}"
    learned += f" · attack success rate {percent(metadata.get('asr'))}"
    return " · ".join(parts) + "\n" + learned


def run_table(rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> Group:
    """The printed table of one run: a row per detector, normalised and raw embeddings side by side.

    Where both exist a cell reads `normalised | raw`. Controls stand at the foot; a failed cell shows its
    error.
    """
    from rich.console import Group
    from rich.text import Text

    pairs: dict[str, dict[bool, Mapping[str, Any]]] = {}
    for row in rows:
        pairs.setdefault(cell_label(row, rows), {})[is_raw(row.get("normalise"))] = row

    table = _empty_table()

    def place(item: tuple[str, dict[bool, Mapping[str, Any]]]) -> tuple[bool, bool, float]:
        row = item[1].get(False) or item[1][True]
        auroc = row.get("auroc")
        if auroc is None or auroc != auroc:
            return is_control(row), True, 0.0
        return is_control(row), False, -float(auroc)

    in_controls = False
    for name, sides in sorted(pairs.items(), key=place):
        any_side = sides.get(False) or sides[True]
        if is_control(any_side) and not in_controls:
            in_controls = True
            table.add_section()
        label = Text(name)
        if is_control(any_side):
            label.append("  control", style="dim italic")
        values = [
            Text(" | ").join([_value(sides.get(False), measure), _value(sides.get(True), measure)])
            for measure in MEASURES
        ]
        table.add_row(label, *values)
    failed = []
    for row in rows:
        if row.get("status", "ok") != "ok":
            name = cell_label(row, rows) + (" (raw)" if is_raw(row.get("normalise")) else "")
            failed.append(Text(f"failed: {name}: {row.get('error')}", style="red"))
    said = [Text(f"! {line}", style="bold yellow") for line in warnings(metadata)]
    return Group(Text(summary(metadata), style="bold"), *said, table, *failed)


def _empty_table() -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        header_style="bold",
        caption="each cell: normalised | raw embeddings",
        caption_justify="left",
        pad_edge=False,
        padding=0,  # five measures fit into 80 columns
        show_edge=False,
    )
    table.add_column("detector", min_width=16)
    for measure in MEASURES.values():
        table.add_column(measure, justify="center", min_width=11, max_width=11)
    return table


def _value(row: Mapping[str, Any] | None, measure: str) -> Any:
    from rich.text import Text

    if row is None:
        return Text("  – ", style="dim")
    if row.get("status", "ok") != "ok":
        return Text("fail", style="red")
    return Text(f"{number(row.get(measure)):^4}")
