"""What a scan says of where samples come from: domains, near-duplicates, changed pictures, the next steps."""

import hashlib
import io
import json
import shlex
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.pages.provenance import sections
from detect import Embeddings, find_neighbours
from detect.embeddings import unit
from detect.search.neighbours import NeighbourSearch
from experiments.data.pairs import open_pairs
from experiments.data.provenance import origins
from experiments.data.row_data import Parquet
from experiments.data.shards import Shards
from experiments.tasks.changed_pictures import changed_pictures
from experiments.tasks.domains import domain_of, domains_of
from experiments.tasks.duplicates import describe, duplicate_groups, find_duplicates
from experiments.tasks.next_steps import clean_command, next_steps

METADATA = {"unscored": {}, "lost": {}, "members": 12}


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        ("https://www.Example.org:80/a.jpg?x=1", "example.org"),
        ("http://user:secret@cdn.example.org/a", "cdn.example.org"),
        ("//a.org/x", "a.org"),
        ("a.org/x", None),
        ("http://[::1/x", None),
        ("", None),
        (None, None),
        (float("nan"), None),
        ("data:image/png;base64,AAAA", None),
    ],
)
def test_the_domain_of_an_address(url, domain):
    assert domain_of(url) == domain


def test_domains_are_compared_with_what_all_samples_give():
    """1,000 samples of 10 domains; 40 of the 50 suspects are of one of them."""
    hosts = [f"host{row % 10}.org" for row in range(1000)]
    of_bad = [row for row in range(1000) if row % 10 == 3][:40]
    order = of_bad + [row for row in range(1000) if row not in of_bad and row % 10 != 3]
    order += [row for row in range(1000) if row not in order]
    rank = np.empty(1000, np.int64)
    rank[order] = np.arange(1, 1001)
    urls = [f"https://{host}/{row}.jpg" for row, host in enumerate(hosts)]
    table = pd.DataFrame({"url": urls, "rank": rank, "key": np.arange(1000).astype(str), "caption": "a cake"})
    found = domains_of(table)
    assert (found["suspects"], found["samples"], found["domains"]) == (50, 1000, 10)
    assert [row["domain"] for row in found["rows"]] == ["host3.org"]
    row = found["rows"][0]
    assert (row["suspects"], row["samples"], row["share"]) == (40, 100, 0.4)
    assert row["lift"] == pytest.approx(0.4 / 0.05)
    assert row["examples"] == [f"{of_bad[i]}: a cake" for i in range(3)]
    assert domains_of(table.assign(url=None)) is None
    drawn = np.random.default_rng(0).permutation(1000) + 1
    assert domains_of(table.assign(rank=drawn))["rows"] == []


class Cosines:
    """Embeddings whose near-duplicates are known."""

    def __init__(self, vectors):
        self.all = unit(np.asarray(vectors, np.float32))

    def __len__(self):
        return len(self.all)

    def vectors(self, kind, rows):
        return self.all[rows]

    def blocks(self, kind):
        for begin in range(0, len(self.all), 37):
            yield begin, self.all[begin : begin + 37]

    def table(self, k):
        embeddings = Embeddings(np.arange(len(self.all)), self.all)
        return find_neighbours(embeddings, k, NeighbourSearch(normalise=True))


def by_every_pair(vectors, cosine):
    """Members of each group of at least two, by comparing every pair."""
    from scipy.sparse.csgraph import connected_components

    _, labels = connected_components(vectors @ vectors.T >= cosine, directed=False)
    groups = {frozenset(np.flatnonzero(labels == label).tolist()) for label in labels}
    return {group for group in groups if len(group) > 1}


@pytest.mark.parametrize("seed", range(4))
def test_groups_are_those_of_comparing_every_pair(seed):
    """Chains, crowds larger than k and copies; k alone would leave some of them in pieces."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, 8))
    rows = [centres[rng.integers(12)] + 0.12 * rng.normal(size=8) for _ in range(400)]
    rows += [centres[0]] * 60
    samples = Cosines(rows)
    groups = duplicate_groups(samples, samples.table(4), 0.985)
    found = {frozenset(np.flatnonzero(groups == number).tolist()) for number in range(1, groups.max() + 1)}
    assert found == by_every_pair(samples.all, 0.985)
    sizes = [int((groups == number).sum()) for number in range(1, groups.max() + 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) > 4


def test_groups_are_described_by_size_captions_and_rank():
    groups = np.array([1, 0, 1, 2, 2, 1])
    captions = ["cake", "dog", "cake", "cat", "cow", "pie"]
    found = describe(groups, captions, np.array([3, 1, 2, 6, 5, 4]), list("abcdef"))
    assert (found["groups"], found["samples"]) == (2, 5)
    assert found["rows"][0] == {
        "size": 3,
        "captions": 2,
        "leading": ["cake (2)", "pie (1)"],
        "rank": 2,
        "examples": ["c", "a", "f"],
    }
    assert [row["size"] for row in found["rows"]] == [3, 2]
    assert describe(np.zeros(3, np.int64), captions, np.arange(3), "abc")["rows"] == []


def test_without_a_table_nothing_is_claimed():
    numbers, found = find_duplicates(range(5), None, 0.98, pd.DataFrame())
    assert not numbers.any()
    assert "not looked for" in found["skipped"]


def shard(path, samples):
    with tarfile.open(path, "w") as tar:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def picture(value):
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def test_pictures_that_changed_are_counted(tmp_path):
    files = []
    for number in range(4):
        content = picture(number)
        noted = {"sha256": hashlib.sha256(content if number != 2 else b"another").hexdigest().upper()}
        files += [(f"{number:03d}.png", content), (f"{number:03d}.txt", b"a cake")]
        files.append((f"{number:03d}.json", json.dumps(noted if number else {}).encode()))
    shard(tmp_path / "0.tar", files)
    data = Shards(str(tmp_path / "0.tar"), size=16, holdout=0)
    data.build(tmp_path / "built")
    pairs = open_pairs(tmp_path / "built")
    runner = SimpleNamespace(value=lambda name: pairs, experiment=SimpleNamespace(source=data))
    found = changed_pictures([runner], pd.DataFrame(origins(data, np.asarray(pairs.ids))))
    assert found == {"compared": 3, "changed": 1, "without": 1, "examples": ["002"]}
    text = "\n".join(sections({"sha256": found}))
    assert "1 of 3 pictures differ from the SHA-256 noted beside them; 1 have none. Such as 002." in text
    assert "resized" in "\n".join(sections({"sha256": found | {"changed": 3}}))


def test_the_summary_has_a_table_of_domains_and_of_duplicates():
    row = {
        "domain": "a|b.org",
        "suspects": 3,
        "samples": 30,
        "share": 0.1,
        "lift": 12.345,
        "examples": ["k: x\x1b"],
    }
    domains = {"suspects": 50, "samples": 900, "domains": 7, "rows": [row]}
    group = {"size": 1798, "captions": 2, "leading": ["the cake (1,797)"], "rank": 5, "examples": ["x"]}
    duplicates = {"cosine": 0.98, "groups": 4, "samples": 1900, "of": 20_000, "rows": [group]}
    text = "\n".join(sections({"domains": domains, "duplicates": duplicates}))
    assert r"| a\|b.org | 3 of 30 | 10.0% | 12.3 | k: x\x1b |" in text
    assert "| 1,798 | 2 | the cake (1,797) | 5 |" in text
    assert "1,900 samples are near-duplicates of others (cosine from 0.98), in 4 groups." in text
    assert "No domain has clearly more" in "\n".join(sections({"domains": domains | {"rows": []}}))
    assert "a crowd" not in text
    assert "a crowd" in "\n".join(sections({"duplicates": duplicates | {"of": 2000}}))
    assert sections({}) == []


def test_the_next_steps_name_the_page_a_whole_command_and_what_was_not_scanned(tmp_path):
    shard(tmp_path / "0.tar", [])
    data = Shards(f"{tmp_path}/0.tar", size=16)
    given = ["task=scan", "data=webdataset", f"data.shards='{tmp_path}/{{0..0}}.tar'", "task.gallery=9", "seed=3"]
    words = shlex.split(clean_command(data, given))
    assert words == [
        *("python", "run.py", "task=clean", "task.remove.share=0.05", "task.write_shards=cleaned"),
        *("data=webdataset", f"data.shards='{tmp_path}/{{0..0}}.tar'", "seed=3"),
    ]
    lines = "\n".join(
        next_steps(METADATA | {"unscored": {"empty file": 2}, "lost": {"cut": 5}}, data, tmp_path, given)
    )
    assert f"open {tmp_path}/suspects.html" in lines
    assert clean_command(data, given) in lines
    assert "2 of 12 samples, and about 5 could not be read" in lines
    lines = "\n".join(next_steps(METADATA, object(), Path("runs"), None))
    assert "nothing; all 12 samples have a score" in lines
    assert "task=clean task" not in lines
    assert "write_shards" not in clean_command(object(), given)
    pd.DataFrame({"image": [b""], "text": ["a cat"]}).to_parquet(tmp_path / "0.parquet")
    assert "task.write_shards=cleaned" in clean_command(Parquet(f"{tmp_path}/0.parquet", size=16), given)
