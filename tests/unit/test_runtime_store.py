"""The stage store: keys, completion by rename, locking."""

import json
import os
import subprocess
import threading
import time

import pytest
from filelock import FileLock

from experiments.runtime.stopping import Stopped
from experiments.runtime.store import Recipe, Store


def stage(**changes):
    given = {"name": "train", "version": 1, "config": {"lr": 0.1}, "inputs": {"data": "abc"}} | changes
    return Recipe(**given)


def test_key_depends_on_everything_that_can_change_the_result():
    keys = {
        stage().key,
        stage(name="embed").key,
        stage(version=2).key,
        stage(config={"lr": 0.2}).key,
        stage(inputs={"data": "abd"}).key,
        stage(inputs={"plan": "abc"}).key,
    }
    assert len(keys) == 6


def test_key_ignores_the_order_of_settings():
    assert stage(config={"a": 1, "b": 2}).key == stage(config={"b": 2, "a": 1}).key


def test_a_setting_that_is_no_plain_value_is_refused():
    with pytest.raises(TypeError, match="plain JSON values, got object"):
        _ = stage(config={"lr": object()}).key


def test_second_get_reuses(tmp_path):
    store, made = Store(tmp_path), []

    def make(folder):
        made.append(folder)
        (folder / "result").write_text("7")
        return {"memory_mb": 5.5}

    first, second = store.get(stage(), make), store.get(stage(), make)
    assert len(made) == 1
    assert (first.reused, second.reused) == (False, True)
    assert (second.path / "result").read_text() == "7"
    assert second.metadata == first.metadata == {"memory_mb": 5.5}
    meta = json.loads((second.path / "meta.json").read_text())
    assert meta["config"] == {"lr": 0.1}
    assert meta["inputs"] == {"data": "abc"}


def test_a_failed_stage_is_not_complete_and_keeps_its_partial_folder(tmp_path):
    store = Store(tmp_path)

    def fail(folder):
        (folder / "checkpoint").write_text("step 3")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        store.get(stage(), fail)
    assert not store.has(stage())

    def resume(folder):
        assert (folder / "checkpoint").read_text() == "step 3"

    assert not store.get(stage(), resume).reused
    assert store.has(stage())


def test_parallel_jobs_build_once(tmp_path):
    made, entries = [], []

    def make(folder):
        made.append(folder)
        time.sleep(0.2)

    def job():
        entries.append(Store(tmp_path).get(stage(), make))

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert len(made) == 1
    assert sorted(entry.reused for entry in entries) == [False, True, True, True]


def test_its_name_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "walk", lambda folder: pytest.fail("all files of the store were visited"))
    assert str(tmp_path) in str(Store(tmp_path))


def test_the_time_of_all_runs_is_added_up(tmp_path):
    def fail(folder):
        time.sleep(0.05)
        raise RuntimeError("planted")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="planted"):
            Store(tmp_path).get(stage(), fail)
    assert Store(tmp_path).get(stage(), lambda folder: None).seconds >= 0.1


@pytest.mark.parametrize("text", ["", "\0" * 8, "1.5.2", "nan", "-3", "inf"])
def test_an_unreadable_note_of_the_time_does_not_block_a_stage(tmp_path, text):
    partial = tmp_path / "train" / f"{stage().key}.partial"
    partial.mkdir(parents=True)
    (partial / ".seconds").write_text(text)
    assert 0 <= Store(tmp_path).get(stage(), lambda folder: None).seconds < 1


def test_a_finished_store_serves_without_its_locks(tmp_path, monkeypatch):
    def make(folder):
        (folder / "result").write_text("7")

    Store(tmp_path).get(stage(), make)
    monkeypatch.setattr(FileLock, "acquire", lambda *_, **__: pytest.fail("a finished result was locked"))
    assert Store(tmp_path).get(stage(), make).reused


def test_a_finished_store_serves_from_a_read_only_disk(tmp_path, mounted):
    def make(folder):
        (folder / "result").write_text("7")

    disk = mounted("1m")
    Store(disk).get(stage(), make)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert (Store(disk).get(stage(), make).path / "result").read_text() == "7"
    with pytest.raises(
        Stopped, match=r"train \w+ must be computed, and the store .* cannot be written: .*Read-only"
    ):
        Store(disk).get(stage(version=2), make)


def test_a_lock_that_may_not_be_written_is_named(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", self.lock_file)

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(Stopped, match=r"cannot be written: .*Permission denied: .*\.lock"):
        Store(tmp_path).get(stage(), lambda folder: None)


@pytest.mark.parametrize("others", [50, 5000])
def test_a_large_store_takes_no_more_reads_of_folders(tmp_path, monkeypatch, others):
    """A stored result is found by its name: nothing is read for the others, however many there are."""
    for number in range(others):
        (tmp_path / "train" / f"{number:016x}").mkdir(parents=True)
        (tmp_path / "neighbours" / f"{number:016x}-8").mkdir(parents=True)
    Store(tmp_path).get(stage(), lambda folder: None)
    reads = []
    for name in ("scandir", "listdir"):
        read = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", read=read: reads.append(str(path)) or read(path))
    store = Store(tmp_path)
    assert store.get(stage(), lambda folder: None).reused
    assert reads == [str(tmp_path / "train" / stage().key)]  # its own files, compared with their digests
    reads.clear()
    table = stage(name="neighbours")
    assert store.of_width(table, 8).width == 8
    assert reads == [str(tmp_path / "neighbours")]  # once: a wider table serves too
