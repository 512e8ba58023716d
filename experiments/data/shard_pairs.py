"""Byte ranges of local and remote shards, and the pairs that are decoded from them on demand."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np

from experiments.data.damage import DecodeError
from experiments.data.image_decoding import Limits, decode
from experiments.data.jpeg_batches import JPEGDecoder
from experiments.runtime.safe_text import printable

INDEX, SHARDS = "index.arrow", "shards.json"


def is_remote(url: str) -> bool:
    return "://" in url and not url.startswith("file://")


def local_path(url: str) -> str:
    return url.removeprefix("file://")


def file_stamp(path: str) -> list[Any]:
    """Size in bytes and time of change (ns) of a local file, or why it cannot be read."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            return ["unreadable", "no regular file"]
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        return ["missing"]
    except OSError as error:
        return ["unreadable", error.errno]
    return [status.st_size, status.st_mtime_ns]


class ChangedShard(OSError):
    """A shard is not the one that was indexed."""


class RangeReader:
    """Reads byte ranges of files; safe in threads and after a fork.

    Local files are read at a position of their own (`pread`), and each thread keeps its last few open.
    Remote ones go through fsspec, all ranges of a batch at a time.

    stamps: size and time of each local file when it was indexed, as `file_stamp` gives them; None: unknown. A file
    that is another one when it is opened is not read.
    """

    def __init__(
        self, urls: Sequence[str], keep_open: int = 64, stamps: Sequence[list[Any] | None] | None = None
    ) -> None:
        self.urls, self.keep_open = list(urls), keep_open
        self.stamps = list(stamps) if stamps is not None else [None] * len(self.urls)
        self._thread = threading.local()

    def __reduce__(self) -> Any:
        return RangeReader, (self.urls, self.keep_open, self.stamps)

    def read(self, files: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> list[bytes]:
        """Ranges of the files at positions `files` (b,) in `urls`; an OSError for one that is too short."""
        result: list[bytes] = [b""] * len(files)
        remote = []
        for i in np.lexsort((offsets, files)):  # in the order on disk
            url = self.urls[files[i]]
            if is_remote(url):
                remote.append(int(i))
            else:
                result[i] = self._read(int(files[i]), int(lengths[i]), int(offsets[i]))
        if remote:
            from fsspec.core import url_to_fs

            system, _ = url_to_fs(self.urls[files[remote[0]]])
            paths = [system._strip_protocol(self.urls[files[i]]) for i in remote]
            starts = [int(offsets[i]) for i in remote]
            ends = [int(offsets[i] + lengths[i]) for i in remote]
            for i, content in zip(remote, system.cat_ranges(paths, starts, ends, on_error="raise"), strict=True):
                result[i] = content
        for i, content in enumerate(result):
            if len(content) != lengths[i]:
                raise ChangedShard(f"{printable(self.urls[files[i]])} has become shorter since it was indexed")
        return result

    def _read(self, number: int, length: int, offset: int) -> bytes:
        try:
            return os.pread(self._open(number), length, offset)
        except OSError as error:
            if isinstance(error, ChangedShard):
                raise
            raise OSError(error.errno, error.strerror, self.urls[number]) from None

    def _open(self, number: int) -> int:
        """The descriptor of a local file; ChangedShard if it is not the one that was indexed."""
        opened: OrderedDict[int, int] | None = getattr(self._thread, "opened", None)
        if opened is None:
            opened = self._thread.opened = OrderedDict()
        if number in opened:
            opened.move_to_end(number)
            return opened[number]
        if len(opened) >= self.keep_open:
            os.close(opened.popitem(last=False)[1])
        descriptor = os.open(local_path(self.urls[number]), os.O_RDONLY)
        status, stamp = os.fstat(descriptor), self.stamps[number]
        if stamp is not None and stamp != [status.st_size, status.st_mtime_ns]:
            os.close(descriptor)
            name = printable(self.urls[number])
            raise ChangedShard(f"{name} has changed since it was indexed; run again to index it anew")
        opened[number] = descriptor
        return descriptor


class ArrowTexts(Sequence[str]):
    """Texts of a memory-mapped Arrow column: millions of captions without millions of Python strings."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            start, end, step = row.indices(len(self))
            return [self[i] for i in range(start, end, step)]
        row = int(row)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} captions")
        return self._column[row % len(self)].as_py()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 65536):
            yield from self._column.slice(start, 65536).to_pylist()


class ListedPairs:
    """Pairs that a table lists and that are decoded on demand, with random access by row.

    table, settings: names of files in `folder`: an Arrow table of ids, captions and the images' places, and
        JSON with the size of the canvases and the limits of the images.
    decoder: for whole batches of images, or None to decode one after the other on the CPU.
    May be used from several threads, sent to other processes and (without a decoder on a GPU) used after a fork.
    """

    table: ClassVar[str]
    settings: ClassVar[str]

    def __init__(self, folder: str | Path, decoder: JPEGDecoder | None = None) -> None:
        import pyarrow as pa

        self.folder, self.decoder = Path(folder), decoder
        self._facts = json.loads((self.folder / self.settings).read_text())
        self.limits = Limits(**self._facts["limits"])
        with pa.memory_map(str(self.folder / self.table)) as source:
            table = pa.ipc.open_file(source).read_all()
        self._columns = {name: table[name].combine_chunks() for name in table.column_names}
        self.ids: np.ndarray = self._columns["id"].to_numpy()
        self.captions = ArrowTexts(self._columns["caption"])

    def __reduce__(self) -> Any:
        return type(self), (str(self.folder), self.decoder)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        """Side of the canvas in pixels."""
        return int(self._facts["size"])

    @classmethod
    def write(cls, folder: Path, table: Any, **facts: Any) -> None:
        """Write an Arrow `table`, in one chunk, and the settings."""
        import pyarrow as pa

        with pa.OSFile(str(folder / cls.table), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=max(len(table), 1))
        (folder / cls.settings).write_text(json.dumps(facts, indent=1))


class ShardPairs(ListedPairs):
    """Pairs that stay in their tar shards."""

    table, settings = INDEX, SHARDS

    def __init__(self, folder: str | Path, decoder: JPEGDecoder | None = None) -> None:
        super().__init__(folder, decoder)
        places = ("shard", "offset", "length")
        self._shard, self._offset, self._length = (self._columns[name].to_numpy() for name in places)
        self._reader = RangeReader(self._facts["shards"], stamps=self._facts.get("stamps"))

    def contents(self, rows: np.ndarray) -> list[bytes]:
        """The image files of `rows` (b,) as they lie in the shards."""
        rows = np.asarray(rows)
        return self._reader.read(self._shard[rows], self._offset[rows], self._length[rows])

    def source(self, row: int) -> str:
        """Shard and byte offset of a row's image."""
        return f"{self._reader.urls[self._shard[row]]} at byte {self._offset[row]}"

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Row positions (b,) -> (b, size, size, 3) uint8.

        Raises a RuntimeError that names the sample if one cannot be decoded, which cannot happen for data
        that was checked when it was indexed.
        """
        rows = np.asarray(rows)
        decoded = Decoding(self.size, self.limits, self.decoder)
        return decoded(self.contents(rows), lambda i: f"sample {self.ids[rows[i]]} ({self.source(int(rows[i]))})")


@dataclass(frozen=True)
class Decoding:
    """Image files -> canvases of one size; `decoder` takes whole batches, None: one after the other on the CPU."""

    size: int
    limits: Limits
    decoder: JPEGDecoder | None

    def __call__(self, contents: Sequence[bytes], name: Callable[[int], str]) -> np.ndarray:
        """b files -> (b, size, size, 3) uint8; RuntimeError with the `name` of one that cannot be decoded."""
        images = np.empty((len(contents), self.size, self.size, 3), dtype=np.uint8)
        left: Iterable[int] = range(len(contents))
        if self.decoder is not None:
            images, left = self.decoder.canvases(contents, self.size, self.limits)
        for i in left:
            try:
                images[i] = decode(contents[i], self.size, self.limits).image
            except DecodeError as damage:
                raise RuntimeError(
                    f"{name(i)} cannot be decoded: {damage}. "
                    "Set data.check=true to leave out such samples before training"
                ) from None
        return images


def write_index(
    folder: Path,
    urls: Sequence[str],
    stamps: Sequence[list[Any] | None],
    size: int,
    limits: Limits,
    columns: dict[str, np.ndarray],
    captions: Any,
) -> None:
    """Write what ShardPairs reads; stamps: as in RangeReader; columns: id, shard, offset and length, each (n,)."""
    import pyarrow as pa

    arrays = {name: pa.array(values) for name, values in columns.items()}
    table = pa.table({**arrays, "caption": captions.cast(pa.large_string())}).combine_chunks()
    ShardPairs.write(folder, table, size=size, limits=vars(limits), shards=list(urls), stamps=list(stamps))
