"""Ranked samples of embedding files, written file by file, with what clip-retrieval knows of each sample."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from detect.vector_files import VectorFile

if TYPE_CHECKING:
    import pandas as pd

JOINED = ("key", "image_path", "url", "caption")
"""Columns that are taken from the table beside the embeddings, as far as it has them."""
AT_A_TIME = 1_000_000
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of characters that steer a terminal or the order of letters, or that no file can hold."""
FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def tables_beside(files: Sequence[VectorFile]) -> list[Path] | None:
    """The table of each file: clip-retrieval's `metadata/metadata_<n>.parquet` of `img_emb/img_emb_<n>.npy`, or
    the Parquet file itself; None where there are none, or no pyarrow to read them.

    ValueError if some files have none, or another number of rows.
    """
    found = [file.path if file.column else _metadata(file.path) for file in files]
    if not any(found) or find_spec("pyarrow") is None:
        return None
    from pyarrow.parquet import read_metadata

    for file, table in zip(files, found, strict=True):
        if table is None:
            raise ValueError(f"{file.path} has no metadata_<n>.parquet beside it, though other files have")
        if (rows := read_metadata(table).num_rows) != file.rows:
            raise ValueError(f"{table} must have a row for each of the {file.rows} of {file.path}, got {rows}")
    return [table for table in found if table is not None]


def pieces(
    files: Sequence[VectorFile], beside: Sequence[Path] | None, columns: Mapping[str, np.ndarray]
) -> Iterator[pd.DataFrame]:
    """A row per sample in the order of the files: file, row in it, what is joined, and `columns` (n,) each."""
    import pandas as pd

    file_start = 0
    names = _joined_names(beside)
    for number, file in enumerate(files):
        for start in range(0, file.rows, AT_A_TIME):
            rows = np.arange(start, min(start + AT_A_TIME, file.rows))
            part = slice(file_start + start, file_start + start + len(rows))
            known = _known(beside[number], names, rows) if beside and names else {}
            own = {name: values[part] for name, values in columns.items()}
            yield pd.DataFrame({"file": plain(str(file.path)), "row": rows, **known, **own})
        file_start += file.rows


def write(tables: Iterator[pd.DataFrame], file: Path, ending: str, top: int) -> pd.DataFrame:
    """Write .csv or .parquet piece by piece; the `top` rows by rank."""
    import pandas as pd

    first, writer = pd.DataFrame(), None
    try:
        for number, table in enumerate(tables):
            first = pd.concat([first, table.nsmallest(top, "rank")]).nsmallest(top, "rank")
            if ending == ".csv":
                _texts_for_csv(table).to_csv(file, mode="a", header=number == 0, index=False)
                continue
            import pyarrow as pa
            from pyarrow.parquet import ParquetWriter

            made = pa.Table.from_pandas(table, preserve_index=False)
            writer = writer or ParquetWriter(file, made.schema)
            writer.write_table(made.cast(writer.schema))
    finally:
        if writer is not None:
            writer.close()
    return _texts_for_csv(first)


def _metadata(file: Path) -> Path | None:
    number = re.fullmatch(r"img_emb_(\d+)", file.stem)
    if number is None:
        return None
    found = file.parent.parent / "metadata" / f"metadata_{number[1]}.parquet"
    return found if found.is_file() else None


def _joined_names(beside: Sequence[Path] | None) -> list[str]:
    """The columns of JOINED that all tables have."""
    if not beside:
        return []
    from pyarrow.parquet import read_schema

    known = [set(read_schema(table).names) for table in beside]
    return [name for name in JOINED if all(name in names for names in known)]


def _known(table: Path, names: Sequence[str], rows: np.ndarray) -> dict[str, Any]:
    """Rows of a table that follow each other, as texts; only their row groups are read."""
    import pandas as pd
    from pyarrow.parquet import ParquetFile

    parts, start = [], 0
    with ParquetFile(table) as file:
        for group in range(file.num_row_groups):
            length = file.metadata.row_group(group).num_rows
            first, last = max(int(rows[0]), start), min(int(rows[-1]) + 1, start + length)
            if first < last:
                parts.append(file.read_row_group(group, columns=list(names)).slice(first - start, last - first))
            start += length
    return {
        name: pd.concat([part.column(name).to_pandas() for part in parts], ignore_index=True).astype("string")
        for name in names
    }


def _texts_for_csv(table: pd.DataFrame) -> pd.DataFrame:
    safe = table.copy()
    for name in JOINED:
        if name in safe:
            safe[name] = safe[name].map(cell, na_action="ignore")
    return safe


def cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula, hidden characters spelled out."""
    shown = escaped(text)
    return f"'{shown}" if shown.lstrip().startswith(FORMULA) else shown


def escaped(text: str) -> str:
    """Text whose control characters, directional marks and lone surrogates are spelled out."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in HIDDEN else character
        for character in text
    )


def plain(name: str) -> str:
    """A path as a table may hold it: no spreadsheet takes it for a formula (`=x` -> `./=x`)."""
    shown = escaped(name)
    return shown if shown[:1].isalnum() or shown[:1] in "/._" else f"./{shown}"
