"""A caption as it was found, in a table's cell or a file of a shard, to one line of text.

Only a text is a caption. The first text of a list is taken; nothing, null and NaN are a missing caption; numbers,
truth values, objects and texts that are no Unicode are a broken one.
"""

from __future__ import annotations

import codecs
import json
import math
from typing import Any

from experiments.data.damage import DecodeError

MAX_CHARACTERS = 2000
"""Of a caption; what is behind them is cut off. CLIP reads 77 tokens, a few hundred characters as a rule, and the
tokenizer's time grows with the square of a word's length."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def clean_caption(value: Any) -> tuple[str, list[str]]:
    """The caption on one line, white space folded, and what is peculiar about it; `value`: anything.

    Bytes are read by their byte-order mark, else as UTF-8. Raises Damage: "missing caption" or "broken caption".
    """
    notes: list[str] = []
    if isinstance(value, list | tuple):
        value = _first_text(value)
        notes.append("list of captions, first taken")
    if isinstance(value, bytes | bytearray):
        value = _decode(bytes(value), notes)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise DecodeError("missing caption")
    if not isinstance(value, str):
        raise DecodeError("broken caption", f"no text, but of the type {type(value).__name__}")
    text = " ".join(value.removeprefix("\ufeff").split())
    if not text:
        raise DecodeError("missing caption", "it is empty")
    if len(text) > MAX_CHARACTERS:
        notes.append(f"caption cut at {MAX_CHARACTERS} characters")
        text = text[:MAX_CHARACTERS].rstrip()
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DecodeError("broken caption", f"half a surrogate pair at character {error.start}") from None
    return text, notes


def json_value(content: bytes, key: str) -> Any:
    """The value of `key` in a JSON object, None if it has none; raises Damage "broken caption"."""
    return json_object(content).get(key)


def json_object(content: bytes) -> dict[str, Any]:
    """The fields of a JSON object; raises Damage "broken caption"."""
    try:
        found = json.loads(content)
    except RecursionError:
        raise DecodeError("broken caption", "JSON nested too deeply") from None
    except ValueError as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise DecodeError("broken caption", f"{type(error).__name__}: {error}") from None
    if not isinstance(found, dict):
        raise DecodeError("broken caption", f"the JSON holds no object, but a {type(found).__name__}")
    return found


def text_encoding(content: bytes) -> str | None:
    """The encoding that the byte-order mark of `content` names; None without a mark."""
    return next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)


def _first_text(values: list[Any] | tuple[Any, ...]) -> Any:
    """The first text that is not empty; else the first value that is not nothing, else None."""
    texts = (value for value in values if isinstance(value, str | bytes) and value.strip())
    others = (value for value in values if value is not None and value not in ("", b""))
    return next(texts, None) or next(others, None)


def _decode(content: bytes, notes: list[str]) -> str:
    text = content.decode(text_encoding(content) or "utf-8", errors="replace").removeprefix("\ufeff")
    if "\ufffd" in text:
        notes.append("caption not in UTF-8")
    return text
