"""Embeddings that lie in files: NumPy arrays and columns of Parquet files, read piece by piece.

Nothing is read before it is asked for: `.npy` files are memory-mapped, Parquet files read by row group.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ENDINGS = (".npy", ".parquet")


@dataclass(frozen=True)
class VectorFile:
    """rows, width: the shape of its array.  column: of a Parquet file, the one with the vectors."""

    path: Path
    rows: int
    width: int
    column: str | None = None

    def pieces(self) -> Iterator[np.ndarray]:
        """The array (rows, width), (b, width) at a time, as it is stored."""
        if self.column is None:
            yield np.load(self.path, mmap_mode="r", allow_pickle=False)
            return
        from pyarrow.parquet import ParquetFile

        with ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                vectors = file.read_row_group(group, columns=[self.column]).column(0).combine_chunks()
                yield _matrix(vectors, self.width, self.path, self.column)


def opened(paths: Sequence[Path], column: str | None = None) -> list[VectorFile]:
    """The files of paths, folders and patterns, those of a folder in the order of the numbers in their names.

    column: of Parquet files, the one with the vectors; None: the only one there is.
    Raises ValueError for what holds no (n, d) array, and where widths differ.
    """
    files: list[VectorFile] = []
    for path in (file for given in paths for file in _expanded(given)):
        file = _parquet(path, column) if path.suffix == ".parquet" else _numpy(path)
        if files and file.width != files[0].width:
            raise ValueError(
                f"all files must be equally wide, but {path} has {file.width} columns, "
                f"and {files[0].path} has {files[0].width}"
            )
        files.append(file)
    if not sum(file.rows for file in files):
        raise ValueError(f"no rows in {', '.join(map(str, paths))}")
    return files


def blocks(files: Sequence[VectorFile], most: int | None) -> Iterator[np.ndarray]:
    """All rows in order, (b, width) float32 at a time: equal parts of at most `most` rows; None: one part.

    ValueError names the file and the rows of numbers that are none.
    """
    n = sum(file.rows for file in files)
    size = n if most is None else -(-n // -(-n // most))
    block, filled = np.empty((min(size, n), files[0].width), np.float32), 0
    left = n
    for file in files:
        piece_start = 0
        for piece in file.pieces():
            for start in _cuts(len(piece), len(block) - filled, size):
                rows = piece[start : start + len(block) - filled]
                _fill(block[filled : filled + len(rows)], rows, file.path, piece_start + start)
                filled += len(rows)
                if filled == len(block):
                    yield block
                    left -= filled
                    block, filled = np.empty((min(size, left), files[0].width), np.float32), 0
            piece_start += len(piece)


def _cuts(rows: int, room: int, size: int) -> list[int]:
    """Where a piece is cut, so that the first part fills the room of a block, and the others whole blocks."""
    return [0, *range(room, rows, size)] if rows else []


def _fill(block: np.ndarray, rows: np.ndarray, file: Path, first: int) -> None:
    with np.errstate(over="ignore"):
        block[:] = rows
    bad = np.flatnonzero(~np.isfinite(block).all(axis=1))
    if len(bad):
        shown = ", ".join(map(str, first + bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise ValueError(
            f"{file} holds NaN, infinite or too large values in {len(bad)} of {len(rows)} rows: {shown}"
        )


def _expanded(path: Path) -> list[Path]:
    if path.is_dir():
        inside = path / "img_emb" if (path / "img_emb").is_dir() else path  # clip-retrieval's whole folder
        files = [file for file in inside.iterdir() if not file.name.startswith(".")]
        for ending in ENDINGS:
            if found := [file for file in files if file.suffix == ending]:
                return sorted(found, key=_numbers)
        raise ValueError(f"no .npy files in {path}, and no .parquet files")
    if not path.exists() and glob.has_magic(str(path)):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            raise ValueError(f"no file matches {path}")
        return sorted(matches, key=lambda match: (str(match.parent), _numbers(match)))
    return [path]


def _numbers(path: Path) -> list[Any]:
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", path.name))]


def _numpy(file: Path) -> VectorFile:
    """Of an array of (n, d) numbers, d at least 1."""
    try:
        part = np.load(file, mmap_mode="r", allow_pickle=False)
    except (EOFError, ValueError) as error:
        reason = (str(error).splitlines() or ["empty"])[0]
        if not file.stat().st_size or "mmap" in reason:
            reason = f"it is empty or cut short, at {file.stat().st_size:,} bytes"
        elif "pickle" in reason:  # numpy takes all that it does not know for one
            reason = "it begins with something else"
        raise ValueError(f"{file} is no .npy file of numbers: {reason}") from None
    if isinstance(part, np.lib.npyio.NpzFile):
        names = ", ".join(part.files[:8])
        part.close()
        raise ValueError(f"{file} is an .npz archive, which holds {names or 'nothing'}; save its array as .npy")
    if part.ndim != 2 or part.dtype.kind not in "fiu":
        raise ValueError(f"{file} must hold an (n, d) array of floats or integers, got {part.dtype} {part.shape}")
    if not part.shape[1]:
        raise ValueError(f"{file} must have at least one column, got shape {part.shape}")
    return VectorFile(file, len(part), part.shape[1])


def _parquet(file: Path, column: str | None) -> VectorFile:
    """Of a column of equally long lists of numbers, which is named or the only one."""
    try:
        from pyarrow import ArrowException, types
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(f"{file}: .parquet needs the package pyarrow; install it, or give .npy") from None
    try:
        with ParquetFile(file) as opened_file:
            schema, rows = opened_file.schema_arrow, opened_file.metadata.num_rows
            lists = [
                field.name
                for field in schema
                if (
                    types.is_fixed_size_list(field.type)
                    or types.is_list(field.type)
                    or types.is_large_list(field.type)
                )
                and (types.is_floating(field.type.value_type) or types.is_integer(field.type.value_type))
            ]
            if column is not None and column not in lists:
                kind = schema.field(column).type if column in schema.names else "no such column"
                raise ValueError(f"{file} must have a column {column} of vectors, got {kind}")
            if column is None and len(lists) != 1:
                known = f"of {', '.join(lists)}" if lists else f"and there is none among {', '.join(schema.names)}"
                raise ValueError(f"{file} must have one column of vectors, {known}; choose with --column")
            name = column or lists[0]
            first = next(opened_file.iter_batches(1, columns=[name]), None)
            width = len(first.column(0)[0]) if first is not None and first.column(0)[0].is_valid else 0
    except ArrowException as error:
        raise ValueError(f"{file} is no Parquet file: {str(error).splitlines()[0]}") from None
    if rows and not width:
        raise ValueError(f"{file} must hold vectors of at least one number in {name}, but row 0 is empty")
    return VectorFile(file, rows, width, name)


def _matrix(vectors: Any, width: int, file: Path, column: str) -> np.ndarray:
    """A list array of pyarrow as (b, width); ValueError for rows of another length or without a value."""
    from pyarrow import compute

    lengths = compute.fill_null(compute.list_value_length(vectors), -1).to_numpy(zero_copy_only=False)
    if (lengths != width).any():
        row = int(np.flatnonzero(lengths != width)[0])
        raise ValueError(
            f"{file} must hold vectors of {width} numbers in {column}, but one has {max(lengths[row], 0)}"
        )
    values = compute.list_flatten(vectors)
    if values.null_count:
        raise ValueError(f"{file} must hold numbers only in {column}, but {values.null_count} of them are null")
    return values.to_numpy(zero_copy_only=False).reshape(len(vectors), width)
