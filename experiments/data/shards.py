"""`data=webdataset`: img2dataset-style tar shards, left as they are and read at random by sample id.

A sample's id is (number of its shard) x 1,000,000 + (its position there), damaged ones counted, so that neither
damage nor a subset moves an id. The index of a shard is made once, kept beside the data stages in
`<store>/index`, and serves every subset and image size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.damage import DamageReport, DecodeError, Issue
from experiments.data.image_decoding import Limits, decode
from experiments.data.pairs import IMAGES, TEST, Progress, TestSet, counting, create_images, write_images
from experiments.data.shard_pairs import RangeReader, is_remote, local_path, write_index
from experiments.data.tar_index import Fields, ShardIndex, index_shard
from experiments.data.test_set import caption_labels, frequent_words, prompt_templates, read_classes, seeded_shares
from experiments.runtime.process_pool import run_jobs

log = logging.getLogger(__name__)

IDS_PER_SHARD = 1_000_000
_CHECK_CHUNK = 2048
_INDEX_VERSION = 1


@dataclass(frozen=True)
class Shards:
    """Tar shards of images with captions.

    Args:
        shards: a brace pattern (`.../{00000..00331}.tar`), a folder of tar files, or a list of either; local or
            any URL that fsspec opens.
        size: side of the canvas in pixels.
        image_keys, caption_keys, json_key: file endings of the image and of the caption, the first that is
            there; in a `.json`, the caption is the value of `json_key`.
        subset: so many samples, drawn by `seed`; None: all. Damaged ones among them are left out.
        check: decode every image once beforehand (JPEGs at an eighth of their scale), so that damage is found
            before training.
        classes, holdout: as in `experiments.data.tables.Files`; `max_test` bounds what is held out.
        max_damaged: largest share of damaged samples that is put up with.
        min_side, max_pixels, max_bytes: of an image.
        seed: decides the subset and what is held out.
    """

    shards: str | Sequence[str]
    size: int
    image_keys: Sequence[str] = Fields.image_keys
    caption_keys: Sequence[str] = Fields.caption_keys
    json_key: str = "caption"
    subset: int | None = None
    check: bool = True
    classes: str | int | Sequence[str] = 20
    holdout: float = 0.02
    max_test: int = 5000
    max_damaged: float = 0.05
    min_side: int = 8
    max_pixels: int = 89_478_485
    max_bytes: int = 200_000_000
    seed: int = 0
    name: str = "shards"  # of the data set, in tables

    def __post_init__(self) -> None:
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout must lie in [0, 1), got {self.holdout}")
        if not 0 <= self.max_damaged <= 1:
            raise ValueError(f"data.max_damaged must lie in [0, 1], got {self.max_damaged}")
        if self.subset is not None and self.subset < 1:
            raise ValueError(f"data.subset must be at least 1, got {self.subset}")
        if self.size < 1:
            raise ValueError(f"data.size must be at least 1 pixel, got {self.size}")
        if isinstance(self.classes, str) and not Path(self.classes).is_file():
            raise ValueError(f"data.classes names a file of class names, but there is no file {self.classes!r}")
        if not any(is_remote(url) or os.path.exists(local_path(url)) for url in self.urls):
            raise ValueError(
                f"data.shards={self.shards!r} names {len(self.urls)} tar files, and none of them is there; see "
                "docs/data.md for how to get them"
            )
        _ = self.limits

    @property
    def limits(self) -> Limits:
        return Limits(self.min_side, self.max_pixels, self.max_bytes)

    @property
    def fields(self) -> Fields:
        return Fields(tuple(self.image_keys), tuple(self.caption_keys), self.json_key)

    @property
    def urls(self) -> list[str]:
        """All shards, in order; local ones as absolute paths."""
        given = [self.shards] if isinstance(self.shards, str) else list(self.shards)
        return [url for pattern in given for url in expand(pattern)]

    def fingerprint(self) -> str:
        """Of what the configuration only points at: names, sizes and times of the shards."""
        digest = hashlib.sha256("\n".join(map(self._part_name, self.urls)).encode())
        if isinstance(self.classes, str):
            digest.update(Path(self.classes).read_bytes())
        return digest.hexdigest()[:16]

    def _part_name(self, url: str) -> str:
        content = [_INDEX_VERSION, url, _stamp(url), dataclasses.asdict(self.fields), self.max_bytes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20] + ".parquet"

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Index the shards, choose and check the samples; what is kept goes into `folder`.

        A killed build goes on where it was. Raises TooMuchDamage above `max_damaged`, with everything kept.
        """
        import pyarrow as pa

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        urls = self.urls
        table, issues, samples = self._index(urls, _index_folder(folder), workers, progress)
        ids = table["id"].to_numpy()
        chosen = self._choose(samples)
        rows = np.flatnonzero(np.isin(ids, chosen)) if len(chosen) < samples.sum() else np.arange(len(ids))
        if not len(rows):
            raise ValueError(f"data.shards={self.shards!r} holds no usable sample: {issues[:3]}")
        labels, classes = self._held_out(ids[rows], table["caption"].take(pa.array(rows)).to_pylist())
        table = table.take(pa.array(rows))
        report = DamageReport(decoded=self.check)
        report.add(*_within(issues, chosen, samples))
        bad = self._check_images(folder, urls, table, labels, report, workers, progress)
        report.finalise(folder, self.max_damaged)
        sound = ~np.isin(table["id"].to_numpy(), bad)
        train = np.flatnonzero(sound & (labels < 0))
        kept = table.take(pa.array(train))
        columns = {name: kept[name].to_numpy() for name in ("id", "shard", "offset", "length")}
        self._write_test(folder, classes)
        write_index(folder, urls, self.size, self.limits, columns, kept["caption"].combine_chunks())
        shutil.rmtree(folder / "parts", ignore_errors=True)
        held_out = int((sound & (labels >= 0)).sum())
        log.info("%d samples to train on, %d held out, in %d shards", len(train), held_out, len(urls))

    def _index(
        self, urls: list[str], parts: Path, workers: int, progress: Progress | None
    ) -> tuple[Any, list[Issue], np.ndarray]:
        """The table of sound samples of all shards; issues; the number of samples of each shard."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        parts.mkdir(parents=True, exist_ok=True)
        files = [parts / self._part_name(url) for url in urls]
        todo = [(self, url, file) for url, file in zip(urls, files, strict=True) if not file.exists()]
        with counting(progress, len(urls), "indexing shards") as shown:
            shown.update(len(urls) - len(todo))
            for _ in run_jobs(_index_job, todo, workers):
                shown.update(1)
        if todo:
            log.info("indexed %d shards, %d had been before", len(todo), len(urls) - len(todo))
        tables, issues, samples = [], [], np.zeros(len(urls), dtype=np.int64)
        shard_of: list[int] = []
        for number, file in enumerate(files):
            part = pq.read_table(file)
            facts = json.loads(part.schema.metadata[b"shard"])
            samples[number] = facts["samples"]
            if samples[number] > IDS_PER_SHARD:
                raise ValueError(f"{urls[number]} holds {samples[number]:,} samples, more than {IDS_PER_SHARD:,}")
            first = number * IDS_PER_SHARD
            for issue in facts["issues"]:
                position = issue.pop("id")
                issues.append(Issue(id=first + position if position >= 0 else -1, **issue))
                shard_of.append(number)
            columns = {"id": pa.array(part["position"].to_numpy() + first)}
            columns["shard"] = pa.array(np.full(len(part), number, dtype=np.int32))
            tables.append(pa.table({**columns, **{k: part[k] for k in ("offset", "length", "caption")}}))
        # How many samples a broken or missing shard has lost can only be told from the other shards.
        typical = int(np.median(samples[samples > 0])) if samples.any() else 1
        for i, issue in enumerate(issues):
            if issue.id < 0 and not issue.note:
                missing = typical - int(samples[shard_of[i]])
                issues[i] = dataclasses.replace(issue, samples=max(issue.samples, missing, 1))
        return pa.concat_tables(tables), issues, samples

    def _choose(self, samples: np.ndarray) -> np.ndarray:
        """Sorted ids of the subset, damaged ones among them."""
        starts = np.repeat(np.arange(len(samples)) * IDS_PER_SHARD, samples)
        within = np.arange(samples.sum()) - np.repeat(np.cumsum(samples) - samples, samples)
        ids = starts + within
        if self.subset is None or self.subset == len(ids):
            return ids
        if self.subset > len(ids):
            raise ValueError(f"data.subset={self.subset} is more than the {len(ids)} samples of the shards")
        return np.sort(np.random.default_rng(self.seed).choice(ids, self.subset, replace=False))

    def _held_out(self, ids: np.ndarray, captions: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        """(n,) class of every row held out for evaluation, -1 for those to train on; and the class names."""
        if self.holdout == 0:
            return np.full(len(ids), -1), ()
        number = self.classes if isinstance(self.classes, int) else 0
        classes = frequent_words(captions, number) if number else read_classes(self.classes)  # type: ignore[arg-type]
        labels = caption_labels(captions, classes)
        shares = seeded_shares(ids, self.seed)
        candidates = np.flatnonzero((labels >= 0) & (shares < self.holdout))
        candidates = candidates[np.argsort(shares[candidates], kind="stable")][: self.max_test]
        held_out = np.full(len(ids), -1)
        held_out[candidates] = labels[candidates]
        return held_out, classes

    def _check_images(
        self, folder: Path, urls: list[str], table: Any, labels: np.ndarray, report: DamageReport, workers: int,
        progress: Progress | None,
    ) -> np.ndarray:  # fmt: skip
        """Decode the held-out images and, with `check`, try all others; returns the ids of the damaged ones."""
        parts = folder / "parts"
        stamp = parts / "fingerprint"
        if not (stamp.exists() and stamp.read_text() == self.fingerprint()):
            shutil.rmtree(parts, ignore_errors=True)  # of shards that have changed since
            parts.mkdir()
            stamp.write_text(self.fingerprint())
        rows = np.arange(len(table)) if self.check else np.flatnonzero(labels >= 0)
        columns = {name: table[name].to_numpy() for name in ("id", "shard", "offset", "length")}
        todo = []
        chunks = [rows[begin : begin + _CHECK_CHUNK] for begin in range(0, len(rows), _CHECK_CHUNK)]
        for number, chunk in enumerate(chunks):
            if not (parts / f"{number:07d}.json").exists():
                values = {name: column[chunk] for name, column in columns.items()}
                todo.append(_CheckJob(self, urls, parts, number, values, labels[chunk]))
        with counting(progress, len(rows), "checking images") as shown:
            shown.update(len(rows) - sum(len(job.labels) for job in todo))
            for job, _ in run_jobs(_check_job, todo, workers):
                shown.update(len(job.labels))
        found = []
        for file in sorted(parts.glob("*.json")):
            found += [Issue(**issue) for issue in json.loads(file.read_text())]
        report.add(0, found)
        return np.array([issue.id for issue in found if not issue.note], dtype=np.int64)

    def _write_test(self, folder: Path, classes: tuple[str, ...]) -> None:
        (folder / TEST).mkdir(exist_ok=True)
        blocks = [np.load(file) for file in sorted((folder / "parts").glob("*.npz"))]
        labels = np.concatenate([np.zeros(0, dtype=np.int64), *(block["labels"] for block in blocks)])
        create_images(folder / TEST / IMAGES, len(labels), self.size)
        written = 0
        for block in blocks:
            if len(block["labels"]):
                write_images(folder / TEST / IMAGES, written, block["images"])
                written += len(block["labels"])
        images = np.load(folder / TEST / IMAGES, mmap_mode="r")
        TestSet(images, labels, classes, prompt_templates()).save_labels(folder / TEST)


def expand(pattern: str) -> list[str]:
    """A brace pattern, a folder or a URL to the tar files that it names, in order."""
    if pattern.startswith("pipe:"):
        raise ValueError(f"data.shards={pattern!r}: pipes have no random access; give files or URLs")
    if not is_remote(pattern) and os.path.isdir(local_path(pattern)):
        names = sorted(name for name in os.listdir(local_path(pattern)) if name.endswith(".tar"))
        if not names:
            raise ValueError(f"data.shards={pattern!r} is a folder without tar files")
        return [os.path.abspath(os.path.join(local_path(pattern), name)) for name in names]
    from braceexpand import braceexpand

    expanded = list(braceexpand(pattern))
    return [url if is_remote(url) else os.path.abspath(local_path(url)) for url in expanded]


def _index_folder(folder: Path) -> Path:
    """<store>/index for a stage in <store>/data; else inside the folder itself."""
    return folder.parent.parent / "index" if folder.parent.name == "data" else folder / "index"


def _stamp(url: str) -> list[Any]:
    """What changes when a shard does: its size, and its time or tag."""
    if not is_remote(url):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(local_path(url))
            return [status.st_size, status.st_mtime_ns]
        return ["missing"]
    from fsspec.core import url_to_fs

    system, path = url_to_fs(url)
    try:
        facts = system.info(path)
    except FileNotFoundError:
        return ["missing"]
    return [facts.get("size"), *(str(facts[key]) for key in ("ETag", "etag", "mtime", "created") if key in facts)]


def _index_job(job: tuple[Shards, str, Path]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    shards, url, file = job
    name = url.rsplit("/", 1)[-1]
    try:
        if is_remote(url):
            from fsspec.core import url_to_fs

            system, path = url_to_fs(url)
            with system.open(path, "rb", block_size=8 << 20, cache_type="readahead") as stream:
                index = index_shard(stream, system.size(path), name, shards.fields, shards.limits)
        else:
            with open(local_path(url), "rb") as stream:
                length = os.stat(stream.fileno()).st_size
                index = index_shard(stream, length, name, shards.fields, shards.limits)
    except FileNotFoundError:
        index = ShardIndex(issues=[Issue(-1, url, "missing shard", samples=0)])
    facts = {"samples": index.samples, "issues": [vars(issue) for issue in index.issues]}
    table = pa.table(
        {
            "position": pa.array(index.positions, pa.int64()), "offset": pa.array(index.offsets, pa.int64()),
            "length": pa.array(index.lengths, pa.int64()), "caption": pa.array(index.captions, pa.large_string()),
        }
    )  # fmt: skip
    table = table.replace_schema_metadata({"shard": json.dumps(facts)})
    unfinished = file.with_suffix(f".{os.getpid()}")
    pq.write_table(table, unfinished)
    unfinished.rename(file)


def _within(issues: list[Issue], chosen: np.ndarray, samples: np.ndarray) -> tuple[int, list[Issue]]:
    """The chosen samples' issues and those of whole shards in proportion; and the number of samples."""
    share = len(chosen) / max(int(samples.sum()), 1)
    of_shards = [
        dataclasses.replace(issue, samples=max(1, round(issue.samples * share))) for issue in issues if issue.id < 0
    ]
    inside = set(np.intersect1d(chosen, [issue.id for issue in issues]).tolist())
    lost = sum(issue.samples for issue in of_shards if not issue.note)
    return len(chosen) + lost, of_shards + [issue for issue in issues if issue.id in inside]


@dataclass(frozen=True)
class _CheckJob:
    shards: Shards
    urls: list[str]
    parts: Path
    number: int
    columns: dict[str, np.ndarray]
    labels: np.ndarray  # (b,) class of the held-out rows, whose canvas is kept; -1 for the others


def _check_job(job: _CheckJob) -> None:
    """Write <number>.npz (held-out canvases) and then, as the mark of completion, <number>.json (issues)."""
    shards, reader, columns = job.shards, RangeReader(job.urls), job.columns
    issues: list[dict[str, Any]] = []
    images, labels = [], []
    for i, sample_id in enumerate(columns["id"]):
        source = f"{job.urls[columns['shard'][i]].rsplit('/', 1)[-1]}@{columns['offset'][i]}"
        one = slice(i, i + 1)
        try:
            content = reader.read(columns["shard"][one], columns["offset"][one], columns["length"][one])[0]
            canvas = decode(content, shards.size if job.labels[i] >= 0 else 8, shards.limits)
        except DecodeError as damage:
            issues.append({"id": int(sample_id), "source": source, "kind": damage.kind, "detail": damage.detail})
            continue
        if job.labels[i] >= 0:
            images.append(canvas.image)
            labels.append(job.labels[i])
        issues += [{"id": int(sample_id), "source": source, "kind": kind, "note": True} for kind in canvas.notes]
    block = np.stack(images) if images else np.zeros((0, shards.size, shards.size, 3), np.uint8)
    np.savez(job.parts / f"{job.number:07d}.npz", labels=np.array(labels, dtype=np.int64), images=block)
    unfinished = job.parts / f"{job.number:07d}.unfinished"
    unfinished.write_text(json.dumps(issues))
    unfinished.rename(job.parts / f"{job.number:07d}.json")
