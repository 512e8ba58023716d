"""Our numbers beside the paper's, where the paper's are known; an unknown one stays empty, and none is invented.

`published.csv` holds one number per line with its source, and in `provenance` how it is known: `first-hand` from
the authors' own pages, or `quoted` by others and not checked against the paper. Two numbers stand beside each other
only where scale, model, data set and attack agree, for accuracy and attack success also the set of images that they
were measured on, for AUROC the detector, on raw embeddings.

A checkpoint of the authors (`experiment=published_models`) counts as the model, data set and attack that it was
trained with; poisons are planted in other data here, which `our_setting` names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.markdown import markdown_table
from analysis.style import attack_label, detector_label
from analysis.tables import number

if TYPE_CHECKING:
    import pandas as pd

FILE = Path(__file__).with_name("published.csv")
PROVENANCES = ("first-hand", "quoted")
QUANTITIES = {
    "zero_shot_top1": "zero-shot accuracy",
    "asr": "attack success rate",
    "auroc": "AUROC",
    "auroc_test_time": "AUROC at test time",
    "asr_after_removal": "attack success rate after removal",
    "attacks_removed": "attacks made harmless",
    "training_pairs": "training pairs",
    "natural_backdoor_samples": "samples of the natural backdoor",
    "natural_backdoor_share": "share of the natural backdoor",
    "cleaning_minutes": "time to score the data",
}
MEASURED_ON_TEST_SET = ("zero_shot_top1", "asr")
COLUMNS = [
    "quantity",
    "attack",
    "model",
    "data",
    "test_set",
    "detector",
    "setting",
    "paper",
    "ours",
    "our_setting",
    "provenance",
    "source",
]
OF_SCORES = ("convention", "modality", "k", "scope_size", "rate")
OF_MODELS = ("rate", "epochs")
CHECKPOINT = re.compile(r"clip_backdoor_([a-z0-9]+(?:_b16)?)_(cc3m|cc12m|redcaps)_")
"""How the authors name a checkpoint: `hf-hub:hanxunh/clip_backdoor_<model>_<data>_<attack>`."""


def known() -> pd.DataFrame:
    """The published numbers, as text exactly as the file has them."""
    import pandas as pd

    return pd.read_csv(FILE, dtype=str, keep_default_na=False)


def side_by_side(summaries: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The paper's numbers beside ours; `summaries` maps a result group's name to what `aggregate.aggregate` gave.

    After the known numbers comes every attack x detector AUROC at the paper's scale; the paper's value is empty as
    long as `published.csv` does not hold it.
    """
    import pandas as pd

    ours = [
        _of_checkpoint(row)
        for rows in summaries.values()
        for row in rows.to_dict("records")
        if row.get("scale") == "paper"
    ]
    lines, used = [], set()
    for row in known().to_dict("records"):
        line = {column: str(row.get(column, "")) for column in COLUMNS}
        line["paper"] = f"{row['value']} {row['unit']}".strip()
        matches = [cell for cell in ours if _alike(cell, row)]
        if matches:
            used |= {_place(cell) for cell in matches} if row["quantity"] == "auroc" else set()
            line |= _shown(matches, str(row["quantity"]), str(row["unit"]))
        lines.append(line)
    for cell in ours:
        if _is_raw(cell) and _place(cell) not in used and cell["auroc"] == cell["auroc"]:
            line = dict.fromkeys(COLUMNS, "") | {"quantity": "auroc", "attack": str(cell["case"])}
            line |= {column: str(cell.get(column) or "") for column in ("model", "data", "detector")}
            lines.append(line | _shown([cell], "auroc", ""))
    for cell in {(c["model"], c["data"], c["case"]): c for c in ours if c.get("planted_in")}.values():
        if cell.get("asr") == cell.get("asr") and cell.get("asr") is not None:
            line = dict.fromkeys(COLUMNS, "") | {"quantity": "asr", "attack": str(cell["case"])}
            line |= {column: str(cell.get(column) or "") for column in ("model", "data", "test_set")}
            lines.append(line | _shown([cell], "asr", "%"))
    return pd.DataFrame(lines, columns=COLUMNS)


def _of_checkpoint(cell: Mapping[Any, Any]) -> dict[Any, Any]:
    """The cell, if its model is one of the authors' checkpoints with what that was trained with."""
    found = CHECKPOINT.search(str(cell.get("model", "")))
    if found is None:
        return dict(cell)
    case = {"sig_blended": "sig", "wanet_field": "wanet"}.get(str(cell["case"]), cell["case"])
    return dict(cell) | {"model": found[1], "data": found[2], "case": case, "planted_in": cell.get("data")}


def _alike(cell: Mapping[Any, Any], row: Mapping[Any, Any]) -> bool:
    """Whether our cell and the published row say the same of the same thing."""
    value = cell.get(row["quantity"])
    if value is None or value != value or str(cell["case"]) != row["attack"]:
        return False
    wanted = ["data", "model"]
    if row["quantity"] in MEASURED_ON_TEST_SET:
        wanted.append("test_set")
    elif not _is_raw(cell):  # the paper's detectors see embeddings as they are
        return False
    if row["detector"]:
        wanted.append("detector")
    return all(row[column] and _plain(cell.get(column)) == _plain(row[column]) for column in wanted)


def _shown(cells: Sequence[Mapping[Any, Any]], quantity: str, unit: str) -> dict[str, str]:
    """How our value of a quantity is printed, and how it was measured; `cells` share it."""
    value = sum(float(cell[quantity]) for cell in cells) / len(cells)
    shown = f"{100 * value:.{2 if quantity == 'auroc' else 1}f} %" if unit == "%" else number(value)
    spread = cells[0].get(f"{quantity}_std", float("nan"))
    if len(cells) == 1 and spread == spread:
        shown += f" ± {100 * spread:.2f}" if unit == "%" else f" ± {number(spread)}"
    setting = {name: cells[0].get(name) for name in (OF_SCORES if quantity == "auroc" else OF_MODELS)}
    said = [f"authors' checkpoint, planted in {cells[0]['planted_in']}"] if cells[0].get("planted_in") else []
    said += [f"{name} {_short(value)}" for name, value in setting.items() if value is not None and value == value]
    return {"ours": shown, "our_setting": ", ".join(said)}


def _is_raw(cell: Mapping[Any, Any]) -> bool:
    """Whether the score was of embeddings as they are, or does not depend on their norm."""
    normalise = cell["normalise"]
    return normalise is None or normalise != normalise or not bool(normalise)


def _place(cell: Mapping[Any, Any]) -> tuple[Any, ...]:
    return tuple(cell.get(column) for column in ("model", "data", "case", "detector"))


def _plain(text: Any) -> str:
    """A name without case and punctuation: `ViT-B/16` is `vit_b16`."""
    return re.sub(r"[^a-z0-9]", "", str(text or "").lower())


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def markdown(table: pd.DataFrame) -> str:
    """The comparison in Markdown; `—` where a number is not known."""
    rows = []
    for row in table.to_dict("records"):
        row["quantity"] = QUANTITIES.get(str(row["quantity"]), row["quantity"])
        row["attack"] = attack_label(str(row["attack"])) if row["attack"] else ""
        row["detector"] = detector_label(str(row["detector"])) if row["detector"] else ""
        row |= {column: row[column] or "—" for column in ("paper", "ours")}
        rows.append([row[column] for column in COLUMNS])
    lines = [
        "# Beside the paper",
        "",
        *markdown_table(COLUMNS, rows),
        "",
        "— not known to us (paper), or not computed here at the paper's scale on like data and test set (ours). "
        "*first-hand*: from the authors' own pages; *quoted*: by others, not checked against the paper.",
    ]
    return "\n".join(lines) + "\n"
