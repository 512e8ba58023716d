"""Texts of strangers, such as captions and names of files, on a terminal, in a log and in a CSV.

Escape sequences can rewrite what a terminal shows, direction marks change what a reader sees, and a spreadsheet
runs a cell that begins like a formula (https://owasp.org/www-community/attacks/CSV_Injection).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

# Control characters, line and paragraph separators, overrides of direction, halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_FORMULA = tuple("=+-@＝＋－＠")


def printable(text: object) -> str:
    r"""`text` on one line, what is not to be shown spelled out: `\x1b`, `\u202e`.

    >>> printable("a\x1b[2Jcat")
    'a\\x1b[2Jcat'
    """
    return _UNSAFE.sub(lambda found: _spelled(ord(found[0])), str(text))


def csv_cell(value: Any) -> Any:
    """A cell to write to a CSV: texts printable, with `'` before what a spreadsheet would take for a formula.

    Numbers stay, also those that are texts. What is no text is returned as it is.

    >>> csv_cell("=HYPERLINK(A1)"), csv_cell("-1.5"), csv_cell(-1.5), csv_cell("a cat")
    ("'=HYPERLINK(A1)", '-1.5', -1.5, 'a cat')
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) and not _is_number(text) else text


def csv_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with every text, also the columns' names, as `csv_cell` gives it."""
    from pandas.api.types import is_numeric_dtype

    safe = frame.copy()
    for name in frame.columns:
        if not is_numeric_dtype(frame[name]):
            safe[name] = frame[name].astype(object).map(csv_cell)
    return safe.rename(columns=csv_cell)


def _spelled(code: int) -> str:
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
