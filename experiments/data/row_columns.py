"""Which columns of a table hold the image, the caption and what is known about them, by name and by type.

The guesses are the names that Hugging Face's data sets, img2dataset and open_clip use.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from experiments.runtime.nearest_name import did_you_mean
from experiments.runtime.safe_text import printable

NONE = "none"
"""As the name of the caption's column: there are no captions."""
IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "image_bytes", "bytes")
PATHS = ("filepath", "file_path", "image_path", "file_name", "filename", "path", "file")
CAPTIONS = (
    "caption",
    "text",
    "txt",
    "captions",
    "title",
    "alt_text",
    "sentence",
    "sentences",
    "description",
    "prompt",
)
KNOWN = {
    "key": ("__key__", "key"),
    "url": ("url", "image_url", "__url__"),
    "uid": ("uid",),
    "width": ("width",),
    "height": ("height",),
    "sha256": ("sha256",),
}
"""What is kept about a sample -> names of the column, or of the field of a column `json`."""
JSON = "json"


def choose(schema: Any, source: str, img_key: str | None, caption_key: str | None) -> tuple[str, str | None]:
    """The columns of the image and of the caption (None: there are none) in an Arrow schema.

    img_key, caption_key: names that were given, or None to guess.  Raises ValueError, which lists the columns.
    """
    image = _given(schema, source, "img_key", img_key) or _guessed_image(schema)
    if image is None:
        raise ValueError(
            f"{source} has no column of images (bytes, or paths of files); its columns: {_listed(schema)}. Give "
            "data.img_key; a table that img2dataset wrote beside its tars belongs to data=webdataset"
        )
    if not _holds_images(schema.field(image).type):
        raise ValueError(f"data.img_key={image!r} holds {schema.field(image).type}, neither bytes nor paths")
    if caption_key == NONE:
        return image, None
    caption = _given(schema, source, "caption_key", caption_key)
    caption = caption or _by_name(schema, CAPTIONS, lambda kind: _holds_texts(kind))
    if caption is None:
        raise ValueError(
            f"{source} has no column of captions that is known by its name; its columns: {_listed(schema)}. Give "
            f"data.caption_key, or data.caption_key={NONE} for pictures alone"
        )
    if not _holds_texts(schema.field(caption).type):
        raise ValueError(f"data.caption_key={caption!r} holds {schema.field(caption).type}, no texts")
    return image, caption


def known_columns(schema: Any) -> dict[str, str]:
    """What is known about the samples -> the column that has it, `json` for a field of that column."""
    found = {}
    for what, names in KNOWN.items():
        column = _by_name(schema, names, _is_plain)
        if column is None and JSON in schema.names:
            column = JSON
        if column is not None:
            found[what] = column
    return found


def known_value(what: str, value: Any, column: str) -> Any:
    """The value of what `KNOWN` names, printable; None if there is none. value: a cell of the column."""
    if column == JSON:
        value = next((fields[name] for fields in [_fields(value)] for name in KNOWN[what] if name in fields), None)
    if value is None or isinstance(value, bool):
        return None
    if what in ("width", "height"):
        return value if isinstance(value, int) and 0 <= value < 2**31 else None
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return printable(value)[:4096] if isinstance(value, (str, int)) else None


def _fields(value: Any) -> dict[str, Any]:
    """A cell of a column `json`: an object, or the text of one; what is neither has no fields."""
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def _given(schema: Any, source: str, option: str, name: str | None) -> str | None:
    if name is None:
        return None
    count = Counter(schema.names)[name]
    if count != 1:
        what = f"has {count} columns of this name" if count else f"has the columns {_listed(schema)}"
        near = "" if count else did_you_mean(name, schema.names)
        raise ValueError(f"data.{option}={name!r} is no column: {source} {what}{near}")
    return name


def _listed(schema: Any) -> str:
    names = [f"{printable(name)!r}" for name in schema.names]
    return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def _by_name(schema: Any, names: Sequence[str], fits: Any) -> str | None:
    """The first of `names`, in any case, that is one column of a type that `fits`."""
    folded = Counter(name.casefold() for name in schema.names)
    for name in names:
        if folded[name] == 1:
            column = next(given for given in schema.names if given.casefold() == name)
            if fits(schema.field(column).type):
                return column
    return None


def _guessed_image(schema: Any) -> str | None:
    known = _by_name(schema, IMAGES, _holds_images)
    bytes_or_structs = [f.name for f in schema if _holds_bytes(f.type) and schema.names.count(f.name) == 1]
    if known is None and len(bytes_or_structs) == 1:
        return bytes_or_structs[0]
    return known or _by_name(schema, PATHS, is_text)


def _holds_images(kind: Any) -> bool:
    return _holds_bytes(kind) or is_text(kind)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as is_

    if is_.is_struct(kind):
        return any(_is_binary(field.type) for field in kind if field.name == "bytes")
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as is_

    return is_.is_binary(kind) or is_.is_large_binary(kind) or is_.is_binary_view(kind)


def is_text(kind: Any) -> bool:
    """Whether an Arrow type is one of texts."""
    import pyarrow.types as is_

    if is_.is_dictionary(kind):
        kind = kind.value_type
    return is_.is_string(kind) or is_.is_large_string(kind) or is_.is_string_view(kind)


def _holds_texts(kind: Any) -> bool:
    import pyarrow.types as is_

    if is_.is_list(kind) or is_.is_large_list(kind):
        kind = kind.value_type
    return is_text(kind) or _is_binary(kind)


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as is_

    return is_text(kind) or _is_binary(kind) or is_.is_integer(kind)
