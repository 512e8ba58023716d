"""Results whose files are no longer what was published: noticed, named, set aside, computed again."""

import json
import logging
import os
import shutil
import subprocess
import threading
import zipfile

import numpy as np
import pytest
from training_example import TINY_CONV

from analysis.stored_cells import read_cells
from experiments.clip.from_store import Trained
from experiments.runtime import digests, verify
from experiments.runtime.stopping import Stopped
from experiments.runtime.store import Recipe, Store

RECIPE = Recipe("data", 1, {"size": 4, "names": {3: "banana", 20: "kite"}, "rate": 0.1})
ROWS = 600


def make(folder):
    (folder / "test").mkdir(exist_ok=True)
    np.save(folder / "images.npy", np.arange(ROWS * 64, dtype=np.uint16).reshape(ROWS, 64))
    np.save(folder / "test" / "labels.npy", np.arange(50))
    np.save(folder / "other.npy", np.arange(50) + 1)
    (folder / "cell.json").write_text('{"auroc": 0.912}')
    (folder / "empty.txt").touch()


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def zero_rows(folder):
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[100:300] = 0
    images.flush()


def edit_meta(folder, **changes):
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | changes, indent=1, sort_keys=True))


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def swap(folder):
    one, other = folder / "other.npy", folder / "test" / "labels.npy"
    one.rename(folder / "third")
    other.rename(one)
    (folder / "third").rename(other)


def become_folder(file):
    file.unlink()
    file.mkdir()


KINDS = {
    "a bit of the last byte": lambda f: flip(f / "images.npy", -1),
    "a bit of the first byte": lambda f: flip(f / "images.npy", 0),
    "a bit in the middle": lambda f: flip(f / "images.npy", 40_000),
    "a bit in a folder's file": lambda f: flip(f / "test" / "labels.npy", -8),
    "200 rows of zeros": zero_rows,
    "a file edited by hand": lambda f: (f / "cell.json").write_text('{"auroc": 0.999}'),
    "two files swapped": swap,
    "a file cut short": lambda f: os.truncate(f / "images.npy", 1000),
    "a file too long": lambda f: (f / "images.npy").open("ab").write(b"\0"),
    "an emptied file": lambda f: os.truncate(f / "images.npy", 0),
    "an empty file filled": lambda f: (f / "empty.txt").write_text("x"),
    "a file missing": lambda f: (f / "images.npy").unlink(),
    "a folder missing": lambda f: shutil.rmtree(f / "test"),
    "a file that is a folder": lambda f: become_folder(f / "images.npy"),
    "an emptied folder": empty,
    "no meta.json": lambda f: (f / "meta.json").unlink(),
    "an emptied meta.json": lambda f: os.truncate(f / "meta.json", 0),
    "a blank meta.json": lambda f: (f / "meta.json").write_text(" \n"),
    "a meta.json of zeros": lambda f: (f / "meta.json").write_bytes(bytes(200)),
    "a meta.json of other bytes": lambda f: (f / "meta.json").write_bytes(b"\xff\xfe{"),
    "half a meta.json": lambda f: os.truncate(f / "meta.json", 200),
    "a meta.json that is a list": lambda f: (f / "meta.json").write_text("[]"),
    "a meta.json that is a folder": lambda f: become_folder(f / "meta.json"),
    "another time in meta.json": lambda f: edit_meta(f, seconds=1.0),
    "another setting in meta.json": lambda f: edit_meta(f, config={"size": 5}),
    "a meta.json of {}": lambda f: (f / "meta.json").write_text("{}"),
    "meta.json without digests": lambda f: edit_meta(f, files={}),
}


@pytest.mark.parametrize("damage", KINDS.values(), ids=KINDS)
def test_damage_is_named_set_aside_and_mended(tmp_path, damage, caplog):
    whole = Store(tmp_path).get(RECIPE, make).path
    expected = {path.name: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    damage(whole)
    assert not Store(tmp_path).has(RECIPE)
    with caplog.at_level(logging.WARNING):
        entry = Store(tmp_path).get(RECIPE, make)
    assert not entry.reused
    (line,) = caplog.messages
    assert line.startswith(f"data {RECIPE.key} is damaged (")
    aside = tmp_path / "set-aside" / "data" / f"{RECIPE.key}.corrupt-1"
    assert line.endswith(f"set aside as {aside}, computed again")
    assert aside.is_dir()
    for path in entry.path.rglob("*"):
        if path.is_file() and path.name != "meta.json":
            assert path.read_bytes() == expected[path.name]
    assert Store(tmp_path).get(RECIPE, make).reused
    damage(entry.path)
    Store(tmp_path).get(RECIPE, make)
    assert aside.with_suffix(".corrupt-2").is_dir()
    assert verify.results(tmp_path) == [entry.path]


def test_the_message_names_the_file_and_what_is_wrong(tmp_path, caplog):
    folder = Store(tmp_path).get(RECIPE, make).path
    flip(folder / "images.npy", -1)
    os.truncate(folder / "cell.json", 3)
    Store(tmp_path).get(RECIPE, make)
    assert (
        "(cell.json: has 3 bytes in place of 16; images.npy: its content has changed (another digest))"
        in caplog.text
    )


def test_large_files_are_read_in_chunks_and_each_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_CHUNK", 1000)
    file = tmp_path / "file"
    file.write_bytes(np.random.default_rng(0).bytes(4321))
    before = digests.digest(file)
    for place in (0, 999, 1000, 3500, 4320):
        flip(file, place)
        assert digests.digest(file) != before
        flip(file, place)
    assert digests.digest(file) == before


def test_a_file_that_does_not_belong_there_is_moved_away_and_nothing_computed(tmp_path, caplog):
    folder = Store(tmp_path).get(RECIPE, make).path
    (folder / "test" / "natural.json").write_text('{"ids": [1]}')
    (folder / ".DS_Store").write_text("of a file manager")
    entry = Store(tmp_path).get(RECIPE, pytest.fail)
    assert entry.reused
    assert sorted(path.name for path in (entry.path / "test").iterdir()) == ["labels.npy"]
    assert "test/natural.json: does not belong here; moved to" in caplog.text
    (moved,) = (tmp_path / "set-aside" / "data").iterdir()
    assert moved.read_text() == '{"ids": [1]}'


def test_files_are_read_once_in_a_run(tmp_path, monkeypatch):
    Store(tmp_path).get(RECIPE, make)
    store, read = Store(tmp_path), []
    monkeypatch.setattr("experiments.runtime.store.faults", lambda folder: read.append(folder) or [])
    for _ in range(3):
        assert store.has(RECIPE)
        store.get(RECIPE, make)
    assert len(read) == 1


def older(folder):
    """What a stage that was finished before files had digests looks like."""
    meta = json.loads((folder / "meta.json").read_text())
    del meta["files"], meta["digest"]
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, sort_keys=True))


def test_results_from_before_digests_are_used_with_one_warning(tmp_path, caplog):
    store, later = Store(tmp_path), Recipe("plan", 1, {})
    for one in (RECIPE, later):
        older(store.get(one, make).path)
    again = Store(tmp_path)
    for one in (RECIPE, later):
        assert again.get(one, pytest.fail).reused
    assert caplog.messages == [f"data {RECIPE.key} comes from an older version, without digests: used unchecked"]
    os.truncate(store.path(RECIPE) / "images.npy", 0)
    assert not Store(tmp_path).get(RECIPE, make).reused
    assert "images.npy: is empty" in caplog.text


def test_jobs_that_notice_the_same_damage_compute_it_once(tmp_path):
    flip(Store(tmp_path).get(RECIPE, make).path / "images.npy", -1)
    entries, made, start = [], [], threading.Barrier(4)

    def slow(folder):
        made.append(folder)
        make(folder)

    def job():
        store = Store(tmp_path)
        assert not store.has(RECIPE)
        start.wait()
        entries.append(store.get(RECIPE, slow))

    jobs = [threading.Thread(target=job) for _ in range(4)]
    for one in jobs:
        one.start()
    for one in jobs:
        one.join()
    assert len(made) == 1
    assert sorted(entry.reused for entry in entries) == [False, True, True, True]
    assert len(list((tmp_path / "set-aside" / "data").iterdir())) == 1


def test_damage_on_a_read_only_disk_is_named(mounted):
    disk = mounted("1m")
    flip(Store(disk).get(RECIPE, make).path / "images.npy", -1)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(Stopped, match=f"data {RECIPE.key} must be computed, and the store .* cannot be written"):
        Store(disk).get(RECIPE, make)


# --- what a killed run has left ------------------------------------------------------------------------------


def test_a_partial_that_is_no_folder_is_set_aside(tmp_path, caplog):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f"{RECIPE.key}.partial").write_text("")
    assert not Store(tmp_path).get(RECIPE, make).reused
    assert "is not a folder that can be written to: set aside as" in caplog.text


@pytest.mark.parametrize("error", [EOFError("no data left"), zipfile.BadZipFile("bad CRC"), "a file", "a folder"])
def test_what_cannot_be_read_of_an_earlier_run_is_set_aside_and_started_anew(tmp_path, error, caplog):
    partial, runs = tmp_path / "data" / f"{RECIPE.key}.partial", []
    partial.mkdir(parents=True)
    (partial / "part").write_text("damaged")

    def resume(folder):
        runs.append(sorted(path.name for path in folder.iterdir()))
        if (folder / "part").exists():
            if error == "a file":
                (folder / "part").mkdir()
            if error == "a folder":
                (folder / "part" / "more").write_text("")
            raise error
        make(folder)

    assert not Store(tmp_path).get(RECIPE, resume).reused
    assert runs == [["part"], []]
    assert f"data {RECIPE.key}: an earlier run's unfinished work cannot be read (" in caplog.text
    assert (tmp_path / "set-aside" / "data" / f"{RECIPE.key}.partial.corrupt-1" / "part").exists()


@pytest.mark.parametrize("error", [ValueError("too much damage"), FileNotFoundError(2, "gone", "/a.tar")])
def test_what_has_another_cause_leaves_the_partial_alone(tmp_path, error):
    def fail(folder):
        (folder / "part").write_text("read so far")
        raise error

    for _ in range(2):
        with pytest.raises(type(error)):
            Store(tmp_path).get(RECIPE, fail)
    assert (tmp_path / "data" / f"{RECIPE.key}.partial" / "part").exists()
    assert not (tmp_path / "set-aside").exists()


def test_a_damaged_model_is_refused_by_name(tmp_path):
    folder = Store(tmp_path).get(Recipe("train", 2, {}), TINY_CONV.build(["red star"]).save).path
    assert not Trained(str(folder)).trains
    flip(folder / "weights.safetensors", 100_000)
    with pytest.raises(ValueError, match=r"is damaged \(weights.safetensors: its content has changed"):
        Trained(str(folder))
    shutil.copytree(folder, tmp_path / "mine")  # under a name of the user's, who may change it
    Trained(str(tmp_path / "mine"))


def test_a_cell_edited_by_hand_is_in_no_table(tmp_path, caplog):
    def evaluated(folder):
        (folder / "cell.json").write_text('{"auroc": 0.9}')
        (folder / "scores.parquet").write_text("scores")

    for version in (1, 2):
        Store(tmp_path).get(Recipe("evaluate", version, {}), evaluated)
    assert len(read_cells(tmp_path)) == 2
    file = tmp_path / "evaluate" / Recipe("evaluate", 2, {}).key / "cell.json"
    file.write_text('{"auroc": 1.0}')
    assert [cell.row["auroc"] for cell in read_cells(tmp_path)] == [0.9]
    assert f"{file.parent} is damaged and left out (cell.json: its content has changed" in caplog.text
    Store(tmp_path).get(Recipe("evaluate", 2, {}), evaluated)
    assert len(read_cells(tmp_path)) == 2


# --- the whole store -----------------------------------------------------------------------------------------


def test_verify_lists_what_is_bad(tmp_path, capsys):
    store = Store(tmp_path)
    for version in range(4):
        store.get(Recipe("plan", version, {}), make)
    folder = store.path(Recipe("plan", 3, {}))
    assert verify.main(["--store", str(tmp_path)]) == 0
    assert "4 results, 0 MB compared with their digests; 0 damaged" in capsys.readouterr().out
    flip(folder / "images.npy", -1)
    (store.path(Recipe("plan", 2, {})) / "meta.json").unlink()
    older(store.path(Recipe("plan", 1, {})))
    assert verify.main(["--store", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"plan/{folder.name}: images.npy: its content has changed (another digest)\n" in said
    assert "meta.json: is missing\n" in said
    assert "4 results" in said
    assert "2 damaged, 1 from before files had digests, 0 set aside earlier" in said


def test_verify_of_no_store_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        verify.main(["--store", str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "there is no folder" in capsys.readouterr().err


def test_verify_names_what_it_may_not_read(tmp_path, monkeypatch, capsys):
    folder = Store(tmp_path).get(RECIPE, make).path

    def refuse(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(digests, "digest", refuse)
    assert verify.main(["--store", str(tmp_path)]) == 1
    assert f"data/{folder.name}: {folder / 'cell.json'} may not be read" in capsys.readouterr().out
    with pytest.raises(Stopped, match=r"cell\.json belongs to a finished result, and may not be read"):
        Store(tmp_path).get(RECIPE, pytest.fail)
