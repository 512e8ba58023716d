"""Images of shards decoded once before training, chunk by chunk, so that damage is found and named."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data.damage import DecodeError
from experiments.data.image_decoding import Limits, decode
from experiments.data.shard_pairs import ChangedShard, RangeReader


@dataclass(frozen=True)
class CheckJob:
    """Images to decode; columns: id, shard, offset and length, each (b,)."""

    size: int
    limits: Limits
    urls: list[str]
    stamps: list[list[Any] | None]
    parts: Path
    number: int
    columns: dict[str, np.ndarray]
    labels: np.ndarray  # (b,) class of the held-out rows, whose canvas is kept; -1 for the others


def check_job(job: CheckJob) -> None:
    """Write <number>.npz (held-out canvases) and then, as the mark of completion, <number>.json (issues)."""
    reader, columns = RangeReader(job.urls, stamps=job.stamps), job.columns
    issues: list[dict[str, Any]] = []
    images, labels = [], []
    for i, sample_id in enumerate(columns["id"]):
        source = f"{job.urls[columns['shard'][i]].rsplit('/', 1)[-1]}@{columns['offset'][i]}"
        one = slice(i, i + 1)
        try:
            content = reader.read(columns["shard"][one], columns["offset"][one], columns["length"][one])[0]
            canvas = decode(content, job.size if job.labels[i] >= 0 else 8, job.limits)
        except DecodeError as damage:
            issues.append({"id": int(sample_id), "source": source, "kind": damage.kind, "detail": damage.detail})
            continue
        except ChangedShard:
            raise
        except OSError as error:
            detail = error.strerror or str(error)
            issues.append({"id": int(sample_id), "source": source, "kind": "unreadable shard", "detail": detail})
            continue
        if job.labels[i] >= 0:
            images.append(canvas.image)
            labels.append(job.labels[i])
        issues += [{"id": int(sample_id), "source": source, "kind": kind, "note": True} for kind in canvas.notes]
    block = np.stack(images) if images else np.zeros((0, job.size, job.size, 3), np.uint8)
    np.savez(job.parts / f"{job.number:07d}.npz", labels=np.array(labels, dtype=np.int64), images=block)
    unfinished = job.parts / f"{job.number:07d}.unfinished"
    unfinished.write_text(json.dumps(issues))
    unfinished.rename(job.parts / f"{job.number:07d}.json")
