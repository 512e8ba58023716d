"""What a part of a scan leaves beside its scores, so that suspects of many parts are grouped and shown together.

`suspects-<number>.parquet` holds, of some samples of `part-<number>.parquet`, its columns and

row      the row in that file
kind     0: among the most suspicious, 1: like these, 2: its caption means the same as theirs, 3: drawn at random
image, text   unit-length embeddings in half precision, (d,) each
picture  a thumbnail, of kinds 0 and 1

and, as JSON in the metadata, `Facts`. Kinds 2 and 3 say what is ordinary: how isolated a group is depends on it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from analysis.pages.rendering import encoded
from experiments.runtime.atomic import whole
from experiments.tasks.group_measures import Source, mean, nearest_captions
from experiments.tasks.groups import Grouping

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SUSPECT, LIKE, SAME_MEANING, ORDINARY = range(4)
OWN = ("row", "kind", "image", "text", "picture")
"""Columns that a part does not have."""
_DRAWN = 1000  # ordinary samples of a part
_MOST_LIKE = 20_000  # samples of kind 1, those of the clusters that rank highest
_ROWS = 256  # of a row group
_FACTS = b"lookout"
_NAME = re.compile(r"part-(\d+)\.parquet")


@dataclass(frozen=True)
class Facts:
    """What is known of a whole part.

    n: samples with a score.  means: of their unit-length embeddings, `image` and `text`.  links: see
    `Grouping.links`.  grouping: the settings.  data, model: for the page.  lost: see `unscored.Unscored`.
    """

    n: int
    means: Mapping[str, Sequence[float]]
    links: Sequence[float]
    grouping: Mapping[str, Any]
    data: str = ""
    model: str = ""
    lost: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, schema: pa.Schema) -> Facts:
        """Of a file's schema; raises ValueError."""
        try:
            found = cls(**json.loads((schema.metadata or {})[_FACTS]))
            Grouping(**found.grouping)
            numbers = np.array([*found.links, *found.means["image"], *found.means["text"]], np.float64)
        except (KeyError, TypeError, ValueError, RecursionError):
            raise ValueError("its facts cannot be read") from None
        kinds = isinstance(found.lost, dict) and all(type(number) is int for number in found.lost.values())
        if not (np.isfinite(numbers).all() and len(found.links) == 2 and type(found.n) is int and kinds):
            raise ValueError("its facts make no sense")
        return found


def beside(part: Path) -> Path | None:
    """Where the suspects of a part's file are; None for a file that is not named like one."""
    found = _NAME.fullmatch(part.name)
    return None if found is None else part.with_name(f"suspects-{found[1]}.parquet")


def write_suspects(
    file: Path,
    table: pd.DataFrame,
    scored: np.ndarray,
    samples: Source,
    score: np.ndarray,
    grouping: Grouping,
    **about: Any,
) -> None:
    """Write the suspects of one part, as a whole or not at all.

    table: of the part; `scored` (n,) are its rows with a score.  samples: these n, with their `score` (n,), higher
    is more suspicious.  about: data, model, lost, see `Facts`.
    """
    links = grouping.links(samples)
    order = np.argsort(-score, kind="stable")
    percentile = np.empty(len(order))
    percentile[order] = 1 - np.arange(len(order)) / max(len(order) - 1, 1)
    suspects = order[: grouping.number(len(order))]
    clusters = grouping.clusters(samples, percentile, suspects, links)
    like = np.unique(_joined(clusters))
    like = like[np.argsort(-percentile[like], kind="stable")][:_MOST_LIKE]
    same = _joined(nearest_captions(samples, clusters) if clusters else ())
    drawn = np.random.default_rng(0).choice(len(order), min(_DRAWN, len(order)), replace=False)
    kinds = np.full(len(order), -1, np.int8)
    for kind, rows in ((ORDINARY, drawn), (SAME_MEANING, same), (LIKE, like), (SUSPECT, suspects)):
        kinds[rows] = kind
    means = {kind: mean(samples, kind).tolist() for kind in ("image", "text")}
    facts = Facts(len(order), means, list(links), asdict(grouping), **about)
    _write(file, table.iloc[scored].reset_index(drop=True), np.asarray(scored), samples, kinds, facts)


def _joined(rows: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int64), *rows])


def _write(
    file: Path, table: pd.DataFrame, scored: np.ndarray, samples: Source, kinds: np.ndarray, facts: Facts
) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    chosen = np.flatnonzero(kinds >= 0)
    columns = pa.Table.from_pandas(table.iloc[chosen], preserve_index=False).replace_schema_metadata(None)
    own = {"row": pa.array(scored[chosen]), "kind": pa.array(kinds[chosen])}
    writer = None
    with whole(file) as temporary:
        try:
            for begin in range(0, len(chosen), _ROWS):
                rows = chosen[begin : begin + _ROWS]
                part = pa.table({name: column.slice(begin, _ROWS) for name, column in own.items()})
                for kind in ("image", "text"):
                    part = part.append_column(kind, _halves(samples.vectors(kind, rows)))
                part = part.append_column("picture", pa.array(_pictures(samples, rows, kinds[rows]), pa.binary()))
                for name in columns.column_names:
                    part = part.append_column(name, columns[name].slice(begin, _ROWS))
                if writer is None:
                    writer = ParquetWriter(
                        temporary, part.schema.with_metadata({_FACTS: json.dumps(asdict(facts))})
                    )
                writer.write_table(part.replace_schema_metadata(writer.schema.metadata))
        finally:
            if writer is not None:
                writer.close()


def _halves(vectors: np.ndarray) -> Any:
    import pyarrow as pa

    values = pa.array(np.ascontiguousarray(vectors, np.float16).ravel())
    return pa.FixedSizeListArray.from_arrays(values, vectors.shape[1])


def _pictures(samples: Source, rows: np.ndarray, kinds: np.ndarray) -> list[bytes | None]:
    found: list[bytes | None] = [None] * len(rows)
    shown = np.flatnonzero(kinds <= LIKE)
    if len(shown):
        for place, image in zip(shown.tolist(), samples.images(rows[shown]), strict=True):
            found[place] = encoded(image)[1]
    return found
