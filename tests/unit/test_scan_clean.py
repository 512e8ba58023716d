"""Thresholds, and shards written without their suspects: every file as it was, every count right."""

import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from experiments.data.provenance import origins, sample_members
from experiments.data.shapes.export import Export
from experiments.data.shards import IDS_PER_SHARD, Shards
from experiments.data.tar_index import index_shard
from experiments.tasks.clean import Threshold, rewrite


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    Export(folder, pairs=240, shards=4, size=32, damage=1).write()
    return folder, Shards(str(folder), size=32, max_damaged=0.5, holdout=0.0)


def files(path):
    """Name -> content of a tar, up to where it breaks."""
    found = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                found[member.name] = hashlib.sha256(tar.extractfile(member).read()).hexdigest()
    except tarfile.TarError:
        pass
    return found


def test_positions_are_those_of_the_index(exported):
    """Rewriting counts samples as reading does, damaged and repeated ones too."""
    _, data = exported
    for url in data.urls[:-1]:
        with open(url, "rb") as stream:
            length = Path(url).stat().st_size
            index = index_shard(stream, length, "x", data.fields, data.limits)
            listed = list(sample_members(stream, length))
            assert len(listed) == index.samples
            for position, offset in zip(index.positions, index.offsets, strict=True):
                assert offset in [member.offset for member in listed[position][1]]


def test_suspects_go_and_all_else_stays_byte_for_byte(exported, tmp_path):
    folder, data = exported
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}
    removed = np.array([0, 7, IDS_PER_SHARD + 3, 3 * IDS_PER_SHARD + 1])
    written = rewrite(data, removed, tmp_path / "new")
    assert before == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}
    for shard, url in enumerate(data.urls[:-1]):
        gone = {int(id) % IDS_PER_SHARD for id in removed if id // IDS_PER_SHARD == shard}
        with open(url, "rb") as stream:
            listed = list(sample_members(stream, Path(url).stat().st_size))
        expected = {m.name for position, (_, members) in enumerate(listed) if position not in gone for m in members}
        old, new = files(url), files(tmp_path / "new" / Path(url).name)
        assert set(new) == expected
        assert all(old[name] == content for name, content in new.items())
        assert written[Path(url).name] == len(listed) - len(gone)
    with open(data.urls[-1], "rb") as stream:  # a broken tar: what could be read of it
        samples = index_shard(stream, Path(data.urls[-1]).stat().st_size, "x", data.fields, data.limits).samples
    assert written["00003.tar"] == samples - 1
    manifest = json.loads((tmp_path / "new/cleaned.json").read_text())
    assert manifest["removed"] == 4
    assert not list((tmp_path / "new").glob("*.partial"))


def test_origins_name_key_and_shard(exported):
    _, data = exported
    ids = np.array([2, IDS_PER_SHARD + 5])
    found = origins(data, ids)
    assert found.shards == ["00000.tar", "00001.tar"]
    for key, url, position in zip(found.keys, data.urls[:2], (2, 5), strict=True):
        with open(url, "rb") as stream:
            assert key == list(sample_members(stream, Path(url).stat().st_size))[position][0]


def test_thresholds():
    z = np.concatenate([np.random.default_rng(0).normal(size=10_000), np.full(100, 30.0)])
    order = np.argsort(-z, kind="stable")
    assert Threshold(share=0.05).suspects(order, z).sum() == 505
    assert Threshold(count=7).suspects(order, z)[order[:7]].all()
    assert Threshold(count=7).suspects(order, z).sum() == 7
    assert (Threshold(cut=2.0).suspects(order, z) == (z > 2)).all()
    removed = Threshold(false_positives=0.01).suspects(order, z)
    assert removed[-100:].all()
    assert 80 <= removed[:-100].sum() <= 140  # 1 % of 10,000, and the median has moved a little


@pytest.mark.parametrize("given", [{}, {"share": 0.1, "count": 3}, {"share": 1.5}, {"count": 0}, {"cut": -1}])
def test_thresholds_that_make_no_sense_are_refused(given):
    with pytest.raises(ValueError, match=r"task\.remove"):
        Threshold(**given)
