"""The suspects that the parts of a scan have left, as one sequence of rows: for groups across parts and a page.

Memory is bounded: of the samples at most `MOST` are taken, and their embeddings lie in files.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.pages.rendering import THUMBNAIL
from detect.embeddings import unit
from detect.search.cosine import most_similar
from experiments.tasks.part_suspects import LIKE, OWN, SUSPECT, Facts, beside

if TYPE_CHECKING:
    import pandas as pd

MOST = 300_000
"""Samples taken. Half of them are suspects, a quarter samples like these, a quarter ordinary ones."""
_LARGEST_GROUP = 1 << 28  # bytes of a row group
_BLOCK = 65_536
_KINDS = ("image", "text")
_NAMES = ("id", "key", "shard", "caption")


@dataclass(frozen=True)
class Listed:
    """What the files hold, not read yet: a row per sample, in the order of the parts.

    files: of the suspects, None for a part without one.  part: (m,) its number.  place: (m,) row in its file.
    row: (m,) row in all parts, `begins` of its part added.  kind: (m,) see `part_suspects`.
    facts: of all parts.  d: numbers of an embedding.
    """

    files: Sequence[Path | None]
    part: np.ndarray
    place: np.ndarray
    row: np.ndarray
    kind: np.ndarray
    facts: Facts
    d: int

    @classmethod
    def of(cls, parts: Sequence[Path], begins: Sequence[int]) -> Listed | None:
        """Of the files beside the parts; None if there are none.

        begins: number of rows before each part, and of all.  Raises ValueError for a file that cannot be read, is
        of another part, or was made with another model or other settings than the rest.
        """
        files = [file if file is not None and file.is_file() else None for file in map(beside, parts)]
        facts: list[Facts] = []
        found: list[tuple[np.ndarray, ...]] = []
        for number, (part, file) in enumerate(zip(parts, files, strict=True)):
            if file is None:
                continue
            about, rows, kinds = _checked(file, part, begins[number + 1] - begins[number])
            differs = facts and (about.grouping, about.model) != (facts[0].grouping, facts[0].model)
            if differs or len({len(one.means["image"]) for one in (*facts, about)}) > 1:
                raise ValueError(
                    f"{file} is of another model, or has other task.grouping, than the files before it"
                )
            facts.append(about)
            places = np.arange(len(rows))
            found.append((np.full(len(rows), number), places, rows + begins[number], kinds))
        if not facts:
            return None
        part_, place, row, kind = (np.concatenate(column) for column in zip(*found, strict=True))
        return cls(files, part_, place, row, kind, _joined(facts), len(facts[0].means["image"]))

    def chosen(self, rank: np.ndarray, most: int) -> np.ndarray:
        """Which of the samples are taken; rank: (m,) among all samples of the data, 1 is the most suspicious."""
        left: list[np.ndarray] = []
        for kinds, share in (((SUSPECT,), 2), ((LIKE,), 4)):
            mine = np.flatnonzero(np.isin(self.kind, kinds))
            left.append(mine[np.argsort(rank[mine], kind="stable")][: most // share])
        others = np.flatnonzero(self.kind > LIKE)
        draw = np.random.default_rng(0)
        left.append(others if len(others) <= most // 4 else draw.choice(others, most // 4, replace=False))
        return np.sort(np.concatenate(left))


def _checked(file: Path, part: Path, length: int) -> tuple[Facts, np.ndarray, np.ndarray]:
    """Facts, rows and kinds of one file; raises ValueError."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile, read_table

    try:
        opened = ParquetFile(file)
        schema, metadata = opened.schema_arrow, opened.metadata
        facts = Facts.of(schema)
        d = len(facts.means["image"])
        vectors = pa.list_(pa.field("element", pa.float16()), d)
        wanted = {"row": pa.int64(), "kind": pa.int8(), "image": vectors, "text": vectors, "picture": pa.binary()}
        for name, kind in wanted.items():
            if name not in schema.names or not schema.field(name).type.equals(kind):
                raise ValueError(f"it has no column {name} of {kind}")
        sizes = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
        if max(sizes, default=0) > _LARGEST_GROUP:
            raise ValueError(f"a row group holds {max(sizes):,} bytes, more than {_LARGEST_GROUP:,}")
        if missing := [name for name in _NAMES if name not in schema.names]:
            raise ValueError(f"it has no column {missing[0]}")
        names = ["row", "kind", "id"]
        table = read_table(file, columns=names)
        rows, kinds = (table[name].to_numpy() for name in ("row", "kind"))
        if len(np.unique(rows)) < len(rows) or not ((rows >= 0) & (rows < length)).all() or table["row"].null_count:
            raise ValueError("its rows are not those of the part")
        if not table["id"].equals(read_table(part, columns=["id"])["id"].take(table["row"])):
            raise ValueError("its ids are not those of the part")
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} holds no suspects of {part.name}: {reason}; scan this part again") from None
    return facts, np.asarray(rows, np.int64), np.asarray(kinds)


def _joined(facts: Sequence[Facts]) -> Facts:
    n = sum(one.n for one in facts)
    means = {
        kind: (np.sum([np.multiply(one.means[kind], one.n) for one in facts], axis=0) / max(n, 1)).tolist()
        for kind in _KINDS
    }
    # In more samples the nearest neighbours are nearer: the tightest links of any part are still too loose.
    links = np.max([one.links for one in facts], axis=0).tolist()
    lost: Counter[str] = Counter()
    for one in facts:
        lost.update(one.lost)
    data = ", ".join(dict.fromkeys(one.data for one in facts))
    return Facts(n, means, links, facts[0].grouping, data, facts[0].model, dict(lost))


class MergedSuspects:
    """m samples in rows, those with a picture first; what groups and the page look at.

    table: a row each: the columns of the parts, and score, p, rank among all samples.  shown: how many have a
    picture.
    """

    def __init__(
        self, listed: Listed, places: Mapping[str, np.ndarray], columns: Sequence[str], folder: Path
    ) -> None:
        """places: score, p and rank of all samples of `listed`.  columns: of the parts that are wanted.

        The embeddings are copied into `folder`.
        """
        chosen = listed.chosen(places["rank"], MOST)
        chosen = chosen[np.lexsort((chosen, listed.kind[chosen] > LIKE))]
        self.shown = int((listed.kind[chosen] <= LIKE).sum())
        self.left_out = len(listed.row) - len(chosen)
        self.rows = listed.row[chosen]
        self._listed, self._chosen = listed, chosen
        self._vectors = {
            kind: np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", np.float16, (len(chosen), listed.d))
            for kind in _KINDS
        }
        self.table = self._read(columns).assign(**{name: values[chosen] for name, values in places.items()})
        captions = self.table["caption"].astype(object)
        self.captions: list[str] = captions.where(captions.notna(), "").astype(str).tolist()

    def __len__(self) -> int:
        return len(self._chosen)

    def _read(self, columns: Sequence[str]) -> pd.DataFrame:
        """The columns of the chosen samples; fills the embeddings."""
        import pandas as pd
        from pyarrow.parquet import ParquetFile

        wanted = [name for name in dict.fromkeys((*_NAMES, *columns)) if name not in OWN]
        tables, where = [], []
        for number, mine in self._by_part(np.arange(len(self._chosen))):
            file = self._listed.files[number]
            opened = ParquetFile(file)
            own = [name for name in wanted if name in opened.schema_arrow.names]
            places = self._listed.place[self._chosen[mine]]
            tables.append(opened.read(columns=own).take(places).to_pandas())
            where.append(mine)
            begin = 0
            for group in range(opened.num_row_groups):
                part = opened.read_row_group(group, columns=list(_KINDS))
                inside = (places >= begin) & (places < begin + len(part))
                for kind in _KINDS:
                    flat = part[kind].combine_chunks().flatten().to_numpy(zero_copy_only=False)
                    if len(flat) != len(part) * self._listed.d or not np.isfinite(flat).all():
                        raise ValueError(
                            f"{file} holds embeddings that are no finite numbers; scan this part again"
                        )
                    vectors = flat.reshape(len(part), -1)
                    self._vectors[kind][mine[inside]] = vectors[places[inside] - begin]
                begin += len(part)
        table = pd.concat(tables, ignore_index=True) if len(tables) > 1 else tables[0]
        return table.iloc[np.argsort(np.concatenate(where), kind="stable")].reset_index(drop=True)

    def _by_part(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        part = self._listed.part[self._chosen[rows]]
        for number in np.unique(part).tolist():
            yield number, rows[part == number]

    def vectors(self, kind: str, rows: np.ndarray) -> np.ndarray:
        """Unit-length embeddings (b, d) float32 of rows (b,); kind: image or text."""
        return unit(np.asarray(self._vectors[kind][np.asarray(rows)], np.float32))

    def blocks(self, kind: str) -> Iterator[tuple[int, np.ndarray]]:
        """All unit-length embeddings, (first row, (b, d)) at a time."""
        yield from self._blocks(kind, len(self))

    def _blocks(self, kind: str, end: int) -> Iterator[tuple[int, np.ndarray]]:
        for begin in range(0, end, _BLOCK):
            yield begin, unit(np.asarray(self._vectors[kind][begin : min(begin + _BLOCK, end)], np.float32))

    def nearest(self, rows: Sequence[int], k: int) -> dict[int, list[tuple[int, float]]]:
        """The k most similar other rows with a picture of each row, with their cosine."""
        queries = self.vectors("image", np.asarray(rows, np.int64))
        found = most_similar(queries, self._blocks("image", self.shown), k, [np.array([row]) for row in rows])
        return {
            int(row): list(zip(near.tolist(), cosines.tolist(), strict=True))
            for row, (near, cosines) in zip(rows, found, strict=True)
        }

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Rows (b,) -> thumbnails (b, side, side, 3) uint8; grey where there is none."""
        from pyarrow.parquet import ParquetFile

        rows = np.asarray(rows)
        content: list[bytes | None] = [None] * len(rows)
        for number, mine in self._by_part(np.unique(rows)):
            opened = ParquetFile(self._listed.files[number])
            places = self._listed.place[self._chosen[mine]]
            begin = 0
            for group in range(opened.num_row_groups):
                length = opened.metadata.row_group(group).num_rows
                inside = np.flatnonzero((places >= begin) & (places < begin + length))
                if len(inside):
                    column = opened.read_row_group(group, columns=["picture"])["picture"]
                    for at in inside.tolist():
                        for where in np.flatnonzero(rows == mine[at]).tolist():
                            content[where] = column[int(places[at]) - begin].as_py()
                begin += length
        return _stacked([_decoded(one) for one in content])


def _decoded(content: bytes | None) -> Any:
    """A thumbnail, or None for what is none: the file may have been changed."""
    from PIL import Image

    if content is None:
        return None
    try:
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        return picture.convert("RGB") if max(picture.size) <= THUMBNAIL else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _stacked(pictures: Sequence[Any]) -> np.ndarray:
    side = max((max(picture.size) for picture in pictures if picture is not None), default=THUMBNAIL)
    images = np.full((len(pictures), side, side, 3), 128, np.uint8)
    for place, picture in enumerate(pictures):
        if picture is not None:
            images[place] = np.asarray(picture if picture.size == (side, side) else picture.resize((side, side)))
    return images
