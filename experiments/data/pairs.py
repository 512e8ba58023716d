"""Image-caption pairs and zero-shot test sets as they lie in a stage folder.

images.npy          (n, size, size, 3) uint8, memory-mapped: the canvas of every sample
captions.parquet    id (int64), caption; row i belongs to image i
natural.json        optional: ids of the samples of a natural backdoor
test/images.npy     (m, size, size, 3) uint8
test/labels.npy     (m,) int64
test/classes.json   {"classes": [...], "templates": [...]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from experiments.data.file_pairs import FilePairs
    from experiments.data.jpeg_batches import JPEGDecoder
    from experiments.data.shard_pairs import ShardPairs

IMAGES, CAPTIONS, NATURAL, TEST, CLASSES = (
    "images.npy",
    "captions.parquet",
    "natural.json",
    "test",
    "classes.json",
)

Progress = Callable[[int, str], AbstractContextManager[Any]]
"""(total, label) -> a context manager whose value has `update(n)`, such as a tqdm bar."""


class Counter(Protocol):
    def update(self, n: int) -> Any: ...


class _Silent:
    def update(self, n: int) -> None:
        pass


@contextmanager
def counting(progress: Progress | None, total: int, label: str) -> Iterator[Counter]:
    """The bar that `progress` makes; None gives a silent one."""
    if progress is None:
        yield _Silent()
    else:
        with progress(total, label) as shown:
            yield shown


@dataclass(frozen=True)
class ArrayPairs:
    """Pairs whose canvases are one array, as a rule a memory map.

    Attributes:
        ids: (n,) int64, unique.
        captions: n texts.
        canvases: (n, size, size, 3) uint8.
    """

    ids: np.ndarray
    captions: Sequence[str]
    canvases: np.ndarray

    def __post_init__(self) -> None:
        shape = self.canvases.shape
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or self.canvases.dtype != np.uint8:
            raise ValueError(f"images must be (n, size, size, 3) uint8, got {shape} {self.canvases.dtype}")
        if not len(self.ids) == len(self.captions) == len(self.canvases):
            raise ValueError(
                f"ids, captions and images differ in number: "
                f"{len(self.ids)}, {len(self.captions)} and {len(self.canvases)}"
            )
        if len(np.unique(self.ids)) != len(self.ids):
            raise ValueError("sample ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Side of the canvas in pixels."""
        return int(self.canvases.shape[1])

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Row positions (b,) -> (b, size, size, 3) uint8, a copy that may be written to."""
        return np.array(self.canvases[np.asarray(rows)])

    @classmethod
    def load(cls, folder: str | Path) -> ArrayPairs:
        folder = Path(folder)
        ids, captions = load_captions(folder / CAPTIONS)
        return cls(ids, captions, np.load(folder / IMAGES, mmap_mode="r"))


class KeptPairs:
    """Some `rows` (m,) of `pairs`, in their order."""

    def __init__(self, pairs: Any, rows: np.ndarray) -> None:
        self.pairs, self.rows = pairs, np.asarray(rows)
        self.ids: np.ndarray = np.asarray(pairs.ids)[self.rows]
        self.captions: list[str] = [pairs.captions[row] for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def size(self) -> int:
        """Side of the canvas in pixels."""
        return int(self.pairs.size)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Row positions (b,) -> (b, size, size, 3) uint8."""
        return self.pairs.images(self.rows[np.asarray(rows)])


def keep(pairs: Any, ids: np.ndarray) -> Any:
    """The pairs whose id is among `ids`; `pairs` itself where that is all of them."""
    kept = np.isin(np.asarray(pairs.ids), ids)
    return pairs if kept.all() else KeptPairs(pairs, np.flatnonzero(kept))


@dataclass(frozen=True)
class TestSet:
    """Labelled images for zero-shot accuracy and attack success.

    Attributes:
        canvases: (m, size, size, 3) uint8.
        labels: (m,) int64, positions in `classes`.
        classes: class names as they stand in a prompt.
        templates: prompts with one `{}` for the class name.
    """

    __test__ = False  # not a pytest class

    canvases: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    templates: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.canvases) != len(self.labels):
            raise ValueError(f"{len(self.canvases)} test images but {len(self.labels)} labels")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError(f"test labels must lie in 0..{len(self.classes) - 1}")
        bad = [template for template in self.templates if template.count("{}") != 1]
        if bad or not self.templates:
            raise ValueError(f"a template must hold one '{{}}' for the class name, got {bad or 'none at all'}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> int:
        return int(self.canvases.shape[1])

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Row positions (b,) -> (b, size, size, 3) uint8, a copy that may be written to."""
        return np.array(self.canvases[np.asarray(rows)])

    def with_class(self, name: str) -> TestSet:
        """This set with `name` among its classes, added as the last one if it was not there."""
        return self if name in self.classes else replace(self, classes=(*self.classes, name))

    def label(self, name: str) -> int:
        """Position of a class; a ValueError lists the choices."""
        if name not in self.classes:
            raise ValueError(f"no class {name!r} in the test set; classes: {', '.join(self.classes)}")
        return self.classes.index(name)

    def save(self, folder: str | Path) -> None:
        """Write into `folder`/test."""
        folder = Path(folder) / TEST
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / IMAGES, self.canvases)
        self.save_labels(folder)

    def save_labels(self, folder: Path) -> None:
        np.save(folder / "labels.npy", self.labels.astype(np.int64))
        content = {"classes": list(self.classes), "templates": list(self.templates)}
        (folder / CLASSES).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: str | Path) -> TestSet:
        """Read from `folder`/test."""
        folder = Path(folder) / TEST
        content = json.loads((folder / CLASSES).read_text())
        return cls(
            np.load(folder / IMAGES, mmap_mode="r"),
            np.load(folder / "labels.npy"),
            tuple(content["classes"]),
            tuple(content["templates"]),
        )


def open_pairs(folder: str | Path, decoder: JPEGDecoder | None = None) -> ArrayPairs | ShardPairs | FilePairs:
    """The training pairs of a data stage: one array, or shards or files, these decoded by `decoder`, if given."""
    from experiments.data.file_pairs import FILES, FilePairs
    from experiments.data.shard_pairs import INDEX, ShardPairs

    if (Path(folder) / FILES).exists():
        return FilePairs(folder, decoder)
    return ShardPairs(folder, decoder) if (Path(folder) / INDEX).exists() else ArrayPairs.load(folder)


def open_test(folder: str | Path) -> TestSet:
    """The test set of a data stage."""
    return TestSet.load(folder)


def natural_ids(folder: str | Path) -> np.ndarray:
    """(m,) int64 ids of the samples of a natural backdoor; empty for data without one."""
    file = Path(folder) / NATURAL
    ids = json.loads(file.read_text())["ids"] if file.exists() else []
    return np.asarray(ids, dtype=np.int64)


def create_images(file: Path, n: int, size: int) -> None:
    """A file for n canvases, all zero, to be filled by `write_images` from any number of processes."""
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(n, size, size, 3)).flush()


def write_images(file: Path, start: int, images: np.ndarray) -> None:
    """Write (b, size, size, 3) uint8 from row `start` on; plain writes, which every file system does well."""
    images = np.ascontiguousarray(images, dtype=np.uint8)
    with open(file, "r+b") as stream:
        np.lib.format.read_magic(stream)
        shape, _, _ = np.lib.format.read_array_header_1_0(stream)
        if images.shape[1:] != shape[1:] or start + len(images) > shape[0]:
            raise ValueError(f"{images.shape} at row {start} does not fit into {shape}")
        stream.seek(start * images[0].nbytes, 1)
        stream.write(images.tobytes())


def save_captions(file: Path, ids: np.ndarray, captions: Sequence[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": pa.array(ids, pa.int64()), "caption": pa.array(list(captions), pa.string())})
    pq.write_table(table, file)


def load_captions(file: Path) -> tuple[np.ndarray, list[str]]:
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    return table["id"].to_numpy(), table["caption"].to_pylist()
