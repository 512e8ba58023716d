"""Our numbers beside the paper's, where the paper's are known; an unknown one stays empty, and none is
invented.

`published.csv` holds one number per line with its source. The comparison takes cells of the paper's scale
only: a demo's numbers say nothing about CC3M.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from analysis.style import attack_label, detector_label
from analysis.tables import number

if TYPE_CHECKING:
    import pandas as pd

FILE = Path(__file__).with_name("published.csv")
QUANTITIES = {  # as they are printed
    "zero_shot_top1": "zero-shot accuracy", "asr": "attack success rate", "auroc": "AUROC",
    "natural_backdoor_samples": "samples of the natural backdoor",
    "natural_backdoor_share": "share of the natural backdoor", "cleaning_minutes": "time to clean the data",
}  # fmt: skip
COLUMNS = ["quantity", "attack", "model", "data", "detector", "setting", "paper", "ours", "source"]


def known() -> pd.DataFrame:
    """The published numbers, as text exactly as the file has them."""
    import pandas as pd

    return pd.read_csv(FILE, dtype=str, keep_default_na=False)


def side_by_side(summaries: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The paper's numbers beside ours; `summaries` maps a study's name to what `grid.aggregate` gave.

    After the known numbers comes every attack x detector AUROC of a study at the paper's scale, for which the
    paper's value is empty as long as `published.csv` does not hold it.
    """
    import pandas as pd

    paper = {name: rows for name, rows in summaries.items() if name.split(" ")[0] == "paper"}
    lines, used = [], set()
    for row in known().to_dict("records"):
        line = {column: str(row.get(column, "")) for column in COLUMNS}
        line |= {"paper": f"{row['value']} {row['unit']}", "ours": ""}
        for name, rows in paper.items():
            parts = name.lower().replace("-", "_").split(" ")
            same = rows[rows["case"] == row["attack"]]
            if row["detector"]:
                same = same[same["detector"] == row["detector"]]
                used.add((name, row["attack"], row["detector"]))
            if len(same) and row["model"] in parts and row["quantity"] in same:
                value = float(same[row["quantity"]].mean())
                line["ours"] = f"{100 * value:.1f} %" if row["unit"] == "%" else f"{value:g} {row['unit']}"
        lines.append(line)
    for name, rows in paper.items():
        _, data, model = [*name.split(" "), "", ""][:3]
        for cell in rows.to_dict("records"):
            raw = cell["normalise"] is None or not bool(cell["normalise"])  # the paper's protocol
            if not raw or (name, cell["case"], cell["detector"]) in used:
                continue
            line = dict.fromkeys(COLUMNS, "") | {"quantity": "auroc", "attack": str(cell["case"]), "model": model}
            ours = number(cell["auroc"])
            if cell["auroc_std"] == cell["auroc_std"]:
                ours += f" ± {number(cell['auroc_std'])}"
            lines.append(line | {"data": data, "detector": str(cell["detector"]), "ours": ours})
    return pd.DataFrame(lines, columns=COLUMNS)


def markdown(table: pd.DataFrame) -> str:
    """The comparison in Markdown; `—` where a number is not known."""
    lines = ["# Beside the paper", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in table.to_dict("records"):
        row["quantity"] = QUANTITIES.get(str(row["quantity"]), row["quantity"])
        row["attack"] = attack_label(str(row["attack"])) if row["attack"] else ""
        row["detector"] = detector_label(str(row["detector"])) if row["detector"] else ""
        row |= {column: row[column] or "—" for column in ("paper", "ours")}
        lines.append("| " + " | ".join(str(row[column]) for column in COLUMNS) + " |")
    lines += ["", "— not known to us (paper), or not computed at the paper's scale in this store (ours)."]
    return "\n".join(lines) + "\n"
