"""The stage store: keys, completion by rename, locking."""

import json
import os
import threading
import time

import pytest

from experiments.runtime.store import Stage, Store


def stage(**changes):
    given = {"name": "train", "version": 1, "config": {"lr": 0.1}, "inputs": {"data": "abc"}} | changes
    return Stage(**given)


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
    assert second.facts == first.facts == {"memory_mb": 5.5}
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


def test_the_size_bears_files_that_vanish_while_it_is_taken(tmp_path, monkeypatch):
    (tmp_path / "a.partial").mkdir()
    for name in ("kept", "a.partial/gone"):
        (tmp_path / name).write_bytes(bytes(3_000_000))
    measure = os.path.getsize

    def other_job_publishes(path):
        if path.endswith("gone"):
            os.remove(path)
        return measure(path)

    monkeypatch.setattr(os.path, "getsize", other_job_publishes)
    assert "holds 3 MB" in str(Store(tmp_path))
