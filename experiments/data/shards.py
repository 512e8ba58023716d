"""`data=webdataset`: img2dataset-style tar shards, left as they are and read at random by sample id.

A sample's id is made of its shard's file name and its position there, damaged ones counted (`sample_ids`), so that
neither damage, nor a subset, nor other shards move an id. The index of a shard is made once, kept beside the data
stages in `<store>/index`, and serves every subset and image size.
"""

from __future__ import annotations

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

from experiments.data.cleaned_folder import refuse_unfinished
from experiments.data.damage import LIST, DamageReport, Issue
from experiments.data.data_parts import drop_damaged, is_indexed
from experiments.data.image_decoding import Limits
from experiments.data.pairs import IMAGES, TEST, Progress, TestSet, counting, create_images, write_images
from experiments.data.sample_ids import POSITIONS, first_ids
from experiments.data.shard_checks import CheckJob, check_job
from experiments.data.shard_damage import settle, within
from experiments.data.shard_index import index_job as _index_job
from experiments.data.shard_pairs import is_remote, local_path, write_index
from experiments.data.shard_urls import check_schemes, expand, stamp
from experiments.data.tar_index import Fields
from experiments.data.test_set import caption_labels, frequent_words, prompt_templates, read_classes, seeded_shares
from experiments.runtime.process_pool import run_jobs

log = logging.getLogger(__name__)

_CHECK_CHUNK = 2048
_INDEX_VERSION = 2


@dataclass(frozen=True)
class Shards:
    """Tar shards of images with captions.

    Args:
        shards: a brace pattern (`.../{00000..00331}.tar`), a glob, a folder of tar files, or a list of these;
            local or any URL that fsspec opens.
        size: side of the canvas in pixels.
        image_keys, caption_keys, json_key: file endings of the image and of the caption, the first that is
            there; in a `.json`, the caption is the value of `json_key`.
        follow_links: take shards that a folder or glob lists and that are links out of their folder.
        subset: number of samples, drawn by `seed`; None: all. Damaged ones among them are left out.
        check: decode every image once beforehand (JPEGs at an eighth of their scale), so that damage is found
            before training.
        classes, holdout: as in `experiments.data.tables.Files`; `max_test` bounds what is held out.
        max_damaged: largest share of damaged samples that is allowed.
        min_side, max_pixels, max_bytes: of an image.
        seed: decides the subset and what is held out.
    """

    shards: str | Sequence[str]
    size: int
    image_keys: Sequence[str] = Fields.image_keys
    caption_keys: Sequence[str] = Fields.caption_keys
    json_key: str = "caption"
    follow_links: bool = False
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
        urls = self.urls
        check_schemes(urls)
        if not any(is_remote(url) or os.path.exists(local_path(url)) for url in urls):
            raise ValueError(
                f"data.shards={self._given} names {len(urls)} tar files, but none of them exists; see "
                "docs/data.md for how to get them"
            )
        _ = self.limits, self.fields

    @property
    def limits(self) -> Limits:
        return Limits(self.min_side, self.max_pixels, self.max_bytes)

    @property
    def fields(self) -> Fields:
        return Fields(self.image_keys, self.caption_keys, self.json_key)

    @property
    def _given(self) -> str:
        """`shards` for a message, which may be a list of thousands."""
        text = repr(self.shards if isinstance(self.shards, str) else list(self.shards))
        return text if len(text) <= 300 else f"{text[:200]} ... {text[-60:]}"

    @property
    def urls(self) -> list[str]:
        """All shards, in order; local ones as absolute paths."""
        given = [self.shards] if isinstance(self.shards, str) else list(self.shards)
        return refuse_unfinished([url for pattern in given for url in expand(pattern, self.follow_links)])

    def fingerprint(self) -> str:
        """Of what the configuration only points at: names, sizes and times of the shards."""
        digest = hashlib.sha256("\n".join(map(self._part_name, self.urls)).encode())
        if isinstance(self.classes, str):
            digest.update(Path(self.classes).read_bytes())
        return digest.hexdigest()[:16]

    def _part_name(self, url: str) -> str:
        content = [_INDEX_VERSION, url, stamp(url), dataclasses.asdict(self.fields), self.max_bytes]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:20] + ".parquet"

    def build(self, folder: str | Path, workers: int = 1, progress: Progress | None = None) -> None:
        """Index the shards, choose and check the samples; what is kept goes into `folder`.

        A killed build goes on where it was. Raises TooMuchDamage above `max_damaged`, with everything kept.
        """
        import pyarrow as pa

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        urls = self.urls
        stamps = [None if is_remote(url) else stamp(url) for url in urls]
        table, issues, samples = self._index(urls, _index_folder(folder), workers, progress)
        ids = table["id"].to_numpy()
        chosen = self._choose(samples)
        rows = np.flatnonzero(np.isin(ids, chosen)) if len(chosen) < samples.sum() else np.arange(len(ids))
        table = table.take(pa.array(rows))
        report = DamageReport(decoded=self.check)
        report.add(*within(issues, chosen, samples))
        if not len(rows):
            settle(report, folder, self.max_damaged)
            raise ValueError(
                f"data.shards={self._given} holds no usable sample: {report}. All are listed in {folder / LIST}."
            )
        labels, classes = self._held_out(ids[rows], table["caption"].to_pylist())
        bad = self._check_images(folder, urls, stamps, table, labels, report, workers, progress)
        settle(report, folder, self.max_damaged)
        sound = ~np.isin(table["id"].to_numpy(), bad)
        train = np.flatnonzero(sound & (labels < 0))
        kept = table.take(pa.array(train))
        columns = {name: kept[name].to_numpy() for name in ("id", "shard", "offset", "length")}
        self._write_test(folder, classes)
        captions = kept["caption"].combine_chunks()
        write_index(folder, urls, stamps, self.size, self.limits, columns, captions)
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
        how = (self.fields, self.limits)
        todo = [(how, url, file) for url, file in zip(urls, files, strict=True) if not is_indexed(file)]
        with counting(progress, len(urls), "indexing shards") as shown:
            shown.update(len(urls) - len(todo))
            for _ in run_jobs(_index_job, todo, workers):
                shown.update(1)
        if todo:
            log.info("indexed %d shards; %d were indexed before", len(todo), len(urls) - len(todo))
        tables, issues, samples = [], [], np.zeros(len(urls), dtype=np.int64)
        shard_of: list[int] = []
        cut: set[int] = set()
        for number, (first, file) in enumerate(zip(first_ids(urls).tolist(), files, strict=True)):
            part = pq.read_table(file)
            facts = json.loads(part.schema.metadata[b"shard"])
            samples[number] = facts["samples"]
            if samples[number] > POSITIONS:
                raise ValueError(f"{urls[number]} holds {samples[number]:,} samples, more than {POSITIONS:,}")
            for issue in facts["issues"]:
                position = issue.pop("id")
                issues.append(Issue(id=first + position if position >= 0 else -1, **issue))
                shard_of.append(number)
            if facts["cut"]:
                cut.add(number)
            if any(issue["kind"] == "unreadable shard" for issue in facts["issues"]):
                file.unlink()  # the next build tries again
            columns = {"id": pa.array(part["position"].to_numpy() + first)}
            columns["shard"] = pa.array(np.full(len(part), number, dtype=np.int32))
            tables.append(pa.table({**columns, **{k: part[k] for k in ("offset", "length", "caption")}}))
        # How many samples a cut or missing shard has lost can only be estimated from the other shards.
        typical = int(np.median(samples[samples > 0])) if samples.any() else 1
        for i, issue in enumerate(issues):
            if issue.id < 0 and not issue.note:
                missing = typical - int(samples[shard_of[i]]) if shard_of[i] in cut else 0
                lost = max(issue.samples, missing)
                detail = f"{issue.detail}; about {lost:,} samples".removeprefix("; ")
                issues[i] = dataclasses.replace(issue, samples=lost, detail=detail)
        return pa.concat_tables(tables), issues, samples

    def members(self, folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
        """Sorted ids of all samples, damaged ones too, and of the subset, for the data stage in `folder`."""
        samples = self._index(self.urls, _index_folder(Path(folder)), 1, None)[2]
        return dataclasses.replace(self, subset=None)._choose(samples), self._choose(samples)

    def _choose(self, samples: np.ndarray) -> np.ndarray:
        """Sorted ids of the subset, damaged ones among them."""
        starts = np.repeat(first_ids(self.urls), samples)
        ids = np.sort(starts + np.arange(samples.sum()) - np.repeat(np.cumsum(samples) - samples, samples))
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
        self,
        folder: Path,
        urls: list[str],
        stamps: list[list[Any] | None],
        table: Any,
        labels: np.ndarray,
        report: DamageReport,
        workers: int,
        progress: Progress | None,
    ) -> np.ndarray:
        """Decode the held-out images and, with `check`, try all others; returns the ids of the damaged ones."""
        parts = folder / "parts"
        stamp = parts / "fingerprint"
        if not (stamp.exists() and stamp.read_text() == self.fingerprint()):
            shutil.rmtree(parts, ignore_errors=True)  # of shards that have changed since
            parts.mkdir()
            stamp.write_text(self.fingerprint())
        drop_damaged(parts)
        rows = np.arange(len(table)) if self.check else np.flatnonzero(labels >= 0)
        columns = {name: table[name].to_numpy() for name in ("id", "shard", "offset", "length")}
        todo = []
        chunks = [rows[start : start + _CHECK_CHUNK] for start in range(0, len(rows), _CHECK_CHUNK)]
        for number, chunk in enumerate(chunks):
            if not (parts / f"{number:07d}.json").exists():
                values = {name: column[chunk] for name, column in columns.items()}
                todo.append(CheckJob(self.size, self.limits, urls, stamps, parts, number, values, labels[chunk]))
        with counting(progress, len(rows), "checking images") as shown:
            shown.update(len(rows) - sum(len(job.labels) for job in todo))
            for job, _ in run_jobs(check_job, todo, workers):
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


def _index_folder(folder: Path) -> Path:
    """<store>/index for a stage in <store>/data; else inside the folder itself."""
    return folder.parent.parent / "index" if folder.parent.name == "data" else folder / "index"
