"""The index of one shard, kept as a file beside the data stages: samples, their places, captions and damage."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.data.damage import Issue
from experiments.data.data_parts import indexed
from experiments.data.image_decoding import Limits
from experiments.data.shard_urls import open_shard
from experiments.data.tar_index import Fields, ShardIndex, index_shard


def index_job(job: tuple[tuple[Fields, Limits], str, Path]) -> None:
    """Write the index of one shard as a Parquet file; the job: endings and limits, URL, file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (fields, limits), url, file = job
    name = url.rsplit("/", 1)[-1]
    try:
        with open_shard(url) as (stream, length):
            index = index_shard(stream, length, name, fields, limits)
    except FileNotFoundError:
        index = ShardIndex(issues=[Issue(-1, url, "missing shard", samples=0)], cut=True)
    except OSError as error:
        reason = error.strerror or str(error)
        index = ShardIndex(issues=[Issue(-1, url, "unreadable shard", reason, samples=0)], cut=True)
    facts = {
        "samples": index.samples,
        "cut": index.cut,
        "issues": [vars(issue) for issue in index.issues],
    }
    table = pa.table(
        {
            "position": pa.array(index.positions, pa.int64()),
            "offset": pa.array(index.offsets, pa.int64()),
            "length": pa.array(index.lengths, pa.int64()),
            "caption": pa.array(index.captions, pa.large_string()),
        }
    )
    table = table.replace_schema_metadata({"shard": json.dumps(facts)})
    with indexed(file) as unfinished:
        pq.write_table(table, unfinished)
