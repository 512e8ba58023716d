"""Shards written without their suspects: every other byte as it was, every count right, killed runs completed."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from experiments.data.cleaned_folder import CLEANED, UNFINISHED, claim
from experiments.data.provenance import origins, sample_members
from experiments.data.sample_ids import first_ids, locate
from experiments.data.shapes.export import LEFT_OUT, Export
from experiments.data.shard_copy import plan_copy
from experiments.data.shards import Shards
from experiments.data.tar_index import index_shard
from experiments.data.unscored import find_unscored
from experiments.tasks.cleaned_copy import KEPT, REMOVED, UNSCORED, tally, write_copy
from experiments.tasks.cleaned_shards import ShardCopier

SETTINGS = {"task.remove": "count = 4"}


def rewrite(data, fates, folder, settings, keep_unscored=False):
    return write_copy(ShardCopier(data, keep_unscored), fates, folder, settings, keep_unscored)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    Export(folder, pairs=240, shards=4, size=32, damage=1).write()
    return folder, Shards(str(folder), size=32, max_damaged=0.5, holdout=0.0)


@pytest.fixture(scope="module")
def fates(exported, tmp_path_factory):
    """What a scan would say: four samples go, the damaged ones have no score."""
    _, data = exported
    stage = tmp_path_factory.mktemp("store") / "data/key"
    data.build(stage)
    members, _ = data.members(stage)
    scored = pd.read_feather(stage / "index.arrow", columns=["id"])["id"].to_numpy()
    unscored = find_unscored(data, stage, scored)
    table = pd.DataFrame({"id": members, "fate": KEPT, "status": "scored"}).set_index("id")
    table.loc[unscored.ids, "fate"], table.loc[unscored.ids, "status"] = UNSCORED, unscored.status
    table.loc[scored[[0, 7, 70, -1]], "fate"] = REMOVED
    return table.reset_index()


def files(path):
    """Name and content of each file of a tar, up to where it breaks."""
    found = []
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                found.append((member.name, hashlib.sha256(tar.extractfile(member).read()).hexdigest()))
    except tarfile.TarError:
        pass
    return found


def listed(path):
    with open(path, "rb") as stream:
        return list(sample_members(stream, Path(path).stat().st_size))


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.tar")}


def test_positions_are_those_of_the_index(exported):
    """Rewriting counts samples as reading does, damaged and repeated ones too."""
    _, data = exported
    for url in data.urls[:-1]:
        with open(url, "rb") as stream:
            length = Path(url).stat().st_size
            index = index_shard(stream, length, "x", data.fields, data.limits)
            members = list(sample_members(stream, length))
            assert len(members) == index.samples
            for position, offset in zip(index.positions, index.offsets, strict=True):
                assert offset in [member.offset for member in members[position][1]]


def test_the_unscored_are_those_that_were_planted(fates):
    assert fates.loc[fates["fate"] == UNSCORED, "status"].value_counts().to_dict() == dict.fromkeys(LEFT_OUT, 1)


@pytest.mark.parametrize("keep", [False, True])
def test_suspects_and_unscored_go_and_all_else_stays_byte_for_byte(exported, fates, tmp_path, keep):
    folder, data = exported
    before = digests(folder)
    report = rewrite(data, fates, tmp_path / "new", SETTINGS, keep)
    assert before == digests(folder)
    stays = fates.loc[fates["fate"].isin([KEPT, UNSCORED] if keep else [KEPT]), "id"].to_numpy()
    number, places = locate(stays, data.urls)
    for shard, url in enumerate(data.urls):
        mine = set(places[number == shard].tolist())
        samples = [members for position, (_, members) in enumerate(listed(url)) if position in mine]
        old, new = files(url), files(tmp_path / "new" / Path(url).name)
        assert [name for name, _ in new] == [member.name for members in samples for member in members]
        assert set(new) <= set(old)
        assert report[Path(url).name]["written"] == len(mine)
    manifest = json.loads((tmp_path / "new" / CLEANED).read_text())
    assert manifest[REMOVED] == 4
    assert manifest[UNSCORED] == dict.fromkeys(LEFT_OUT, 1)
    assert manifest["members"] == len(fates) == manifest[KEPT] + 4 + len(LEFT_OUT)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*before, CLEANED}


def test_poisons_under_repeated_keys_do_not_come_through(tmp_path):
    """8 of them at the end of a shard of 200, under 5 % of damage: all were among the cleaned samples once."""
    Export(tmp_path / "in", pairs=200, shards=1, size=32).write()
    with tarfile.open(tmp_path / "in/00000.tar", "a") as tar:
        for number in range(8):
            for ending, content in (("jpg", b"poison"), ("txt", b"a banana")):
                info = tarfile.TarInfo(f"{number:09d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = Shards(str(tmp_path / "in"), size=32, holdout=0.0, check=True)
    data.build(tmp_path / "store/data/key")
    scored = pd.read_feather(tmp_path / "store/data/key/index.arrow", columns=["id"])["id"].to_numpy()
    unscored = find_unscored(data, tmp_path / "store/data/key", scored)
    assert len(scored) == 200
    ids = first_ids(data.urls)[0] + np.arange(208)
    assert unscored.ids.tolist() == ids[200:].tolist()
    table = pd.DataFrame({"id": ids, "fate": [KEPT] * 200 + [UNSCORED] * 8, "status": "scored"})
    rewrite(data, table, tmp_path / "new", SETTINGS)
    assert b"poison" not in (tmp_path / "new/00000.tar").read_bytes()
    assert len(listed(tmp_path / "new/00000.tar")) == 200


@pytest.mark.parametrize(
    ("second", "read", "keep"),
    [
        ("png", None, False),
        ("png", None, True),
        ("png", ["jpg"], False),
        ("PPM", None, False),
        ("big.jp2", None, False),
    ],
)
def test_a_second_image_of_a_sample_does_not_come_through_unseen(tmp_path, second, read, keep):
    """The reader scores one; whoever trains may take the other."""
    (tmp_path / "in").mkdir()
    picture = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(picture, "JPEG")
    with tarfile.open(tmp_path / "in/0.tar", "w") as tar:
        for key in ("a", "b"):
            for ending, content in (("jpg", picture.getvalue()), (second, b"poison"), ("txt", b"a cat")):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = Shards(str(tmp_path / "in"), size=32, holdout=0.0, **({"image_keys": read} if read else {}))
    table = pd.DataFrame({"id": first_ids(data.urls)[0] + np.arange(2), "fate": KEPT, "status": "scored"})
    report = rewrite(data, table, tmp_path / "new", SETTINGS, keep)
    names = [name for name, _ in files(tmp_path / "new/0.tar")]
    assert (f"a.{second}" in names) == (f"b.{second}" in names) == keep
    assert {"a.jpg", "a.txt", "b.jpg", "b.txt"} <= set(names)
    assert (report["0.tar"]["written"], report["0.tar"]["unseen"]) == (2, 0 if keep else 2)


def test_a_finished_shard_that_has_changed_is_written_anew(exported, fates, tmp_path):
    """Its size and its keys are as they were; one byte of a picture is not."""
    _, data = exported
    rewrite(data, fates, tmp_path / "new", SETTINGS)
    file = sorted((tmp_path / "new").glob("*.tar"))[0]
    whole = file.read_bytes()
    file.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    rewrite(data, fates, tmp_path / "new", SETTINGS)
    assert file.read_bytes() == whole


def test_counts_that_do_not_come_out_are_refused(exported, fates, tmp_path):
    _, data = exported
    assert tally(fates, len(fates))["members"] == len(fates)
    for wrong in (fates.iloc[1:], pd.concat([fates, fates.iloc[:1]]), fates.assign(fate="forgotten")):
        with pytest.raises(RuntimeError, match=r"are not the \d+ that there are"):
            tally(wrong, len(fates))
    with pytest.raises(RuntimeError, match=r"00001\.tar: .* are not the 60 that there are"):
        rewrite(data, fates[fates["id"] != first_ids(data.urls)[1] + 3], tmp_path / "new", SETTINGS)


def test_a_killed_clean_is_completed_and_its_folder_refused_until_then(exported, fates, tmp_path, monkeypatch):
    _, data = exported
    whole = tmp_path / "whole"
    rewrite(data, fates, whole, SETTINGS)
    killed = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr("experiments.tasks.cleaned_shards.plan_copy", killing(after=2))
        with pytest.raises(KeyboardInterrupt):
            rewrite(data, fates, killed, SETTINGS)
    (killed / "00002.tar.partial").write_bytes(b"half a shard")
    for shards in (str(killed), f"{killed}/{{00000..00001}}.tar", [str(killed / "00000.tar")]):
        with pytest.raises(ValueError, match="holds half-written cleaned shards"):
            Shards(shards, size=32)
    (killed / "00001.tar").write_bytes((killed / "00001.tar").read_bytes()[:-10240])  # the disk was full
    rewrite(data, fates, killed, SETTINGS)
    assert digests(killed) == digests(whole)
    assert not (killed / UNFINISHED).exists()
    assert len(Shards(str(killed), size=32).urls) == 4
    rewrite(data, fates, killed, SETTINGS)  # complete already: nothing to do, nothing refused
    assert digests(killed) == digests(whole)


def killing(after):
    calls = []

    def plan(*given):
        calls.append(given)
        if len(calls) > after:
            raise KeyboardInterrupt
        return plan_copy(*given)

    return plan


@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_of_anything_else_is_refused_in_one_line(exported, fates, tmp_path, begun, monkeypatch):
    _, data = exported
    new = tmp_path / "new"
    rewrite(data, fates, new, SETTINGS)
    if begun:
        (new / CLEANED).rename(new / UNFINISHED)
    before = {path.name: path.stat().st_mtime_ns for path in new.iterdir()}
    with pytest.raises(ValueError, match=r"cleaned with another task\.remove; name another folder"):
        rewrite(data, fates, new, {"task.remove": "share = 0.5"})
    other = fates.assign(fate=fates["fate"].where(fates.index != 5, REMOVED))
    with pytest.raises(ValueError, match="cleaned with other suspects"):
        rewrite(data, other, new, SETTINGS)
    (new / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"new or empty folder, but .* holds files \(notes\.txt\)"):
        rewrite(data, fates, new, SETTINGS)
    (new / "notes.txt").unlink()
    assert before == {path.name: path.stat().st_mtime_ns for path in new.iterdir()}
    with pytest.raises(ValueError, match="new or empty folder"):
        rewrite(data, fates, exported[0], SETTINGS)  # the originals
    for file in (Path(data.urls[0]), Path(data.urls[0]) / "new"):
        with pytest.raises(ValueError, match="is a file"):
            claim(file, [], SETTINGS)
    monkeypatch.setattr("os.access", lambda *given: False)
    with pytest.raises(ValueError, match=f"cannot be written: {tmp_path} is read-only"):
        claim(tmp_path / "a/b", [], SETTINGS)


def test_origins_name_key_and_shard(exported):
    _, data = exported
    ids = first_ids(data.urls)[:2] + np.array([2, 5])
    found = origins(data, ids)
    assert found["shard"] == ["00000.tar", "00001.tar"]
    for key, url, position in zip(found["key"], data.urls[:2], (2, 5), strict=True):
        assert key == listed(url)[position][0]
