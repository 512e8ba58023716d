"""Markdown tables. Captions and names come from strangers, so no cell can end its column or its line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.runtime.safe_text import printable


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a table: `columns` as its head, and a line for each row; ValueError if a row is not as wide."""
    lines = [_line(columns), "|---" * len(columns) + "|"]
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"a row of the table must have {len(columns)} cells, got {len(row)}: {list(row)}")
        lines.append(_line(row))
    return lines


def shortened(text: str, width: int = 90) -> str:
    """`text` on one line of at most `width` characters, with `…` for what is cut off."""
    flat = " ".join(text.split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _line(cells: Iterable[object]) -> str:
    return "| " + " | ".join(printable(" ".join(str(cell).split())).replace("|", "\\|") for cell in cells) + " |"
