"""Parts that an earlier build has left: damaged ones are made again, and only those."""

import json
import os

import numpy as np
import pytest

from experiments.data.data_parts import drop_damaged, indexed, is_indexed


def write(parts, number):
    np.savez(parts / f"{number}.npz", rows=np.arange(100), images=np.ones((100, 8)))
    (parts / f"{number}.json").write_text(json.dumps({"total": 100}))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("2.npz", flip),
        ("2.npz", lambda f: os.truncate(f, 500)),
        ("2.npz", lambda f: os.truncate(f, 0)),
        ("2.json", lambda f: os.truncate(f, 0)),
        ("2.json", lambda f: f.write_bytes(bytes(20))),
        ("2.json", lambda f: os.truncate(f, 7)),
    ],
    ids=["a bit", "cut short", "emptied", "no issues", "zeros", "half of the issues"],
)
def test_a_damaged_part_is_removed_and_the_others_stay(tmp_path, name, damage, caplog):
    for number in (1, 2, 3):
        write(tmp_path, number)
    assert drop_damaged(tmp_path) == 0
    damage(tmp_path / name)
    assert drop_damaged(tmp_path) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.json", "1.npz", "3.json", "3.npz"]
    assert f"{tmp_path / '2.npz'} or .json beside it cannot be read" in caplog.text


def test_an_unfinished_part_is_left_to_be_overwritten(tmp_path, caplog):
    write(tmp_path, 1)
    (tmp_path / "2.npz").touch()
    (tmp_path / "3.json").touch()
    assert drop_damaged(tmp_path) == 0
    assert not caplog.messages


@pytest.mark.parametrize("damage", [flip, lambda f: os.truncate(f, 0), lambda f: os.truncate(f, 30)])
def test_a_damaged_index_is_made_again(tmp_path, damage, caplog):
    file = tmp_path / "one.parquet"
    with indexed(file) as temporary:
        temporary.write_text("x" * 100)
    assert is_indexed(file)
    damage(file)
    assert not is_indexed(file)
    assert "is damaged: set aside as one.parquet.corrupt-1" in caplog.text
    assert not file.exists()
    with indexed(file) as temporary:
        temporary.write_text("x" * 100)
    assert is_indexed(file)


def test_an_index_from_before_digests_is_used_unless_it_is_empty(tmp_path):
    (tmp_path / "one.parquet").write_text("x")
    assert is_indexed(tmp_path / "one.parquet")
    (tmp_path / "one.parquet").write_text("")
    assert not is_indexed(tmp_path / "one.parquet")


def test_a_failed_index_leaves_nothing(tmp_path):
    def fail():
        with indexed(tmp_path / "one.parquet") as temporary:
            temporary.write_text("half")
            raise RuntimeError("planted")

    with pytest.raises(RuntimeError, match="planted"):
        fail()
    assert not list(tmp_path.iterdir())
