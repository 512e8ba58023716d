"""Tracking: an offline run is written, read back from its log, and holds the AUROCs of the results."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from analysis_example import example_result

from experiments.pipeline import tracking
from experiments.pipeline.tracking import Tracker

CONF = Path(__file__).parents[2] / "conf"
CONFIG = {
    "seed": 3,
    "attack": {"_target_": "attacks.Attack", "name": "badnets", "rate": 0.005},
    "data": {"_target_": "experiments.data.Shapes", "pairs": 400},
    "detector": {"slof": {"_target_": "detect.SLOF", "k": 32}, "lid": {"_target_": "detect.LID"}},
}


def read_log(path: Path) -> list:
    """The records of a .wandb file: a LevelDB log of protocol buffers, in blocks of 32 KiB.

    A 7-byte file header, then chunks of (checksum 4, length 2, type 1, data); type 1 is a whole record, 2, 3,
    4 its first, middle and last parts; a block's last bytes, too few for a header, are padding.
    """
    from wandb.proto import wandb_internal_pb2

    data, at, whole, records = path.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind == 0:
            break
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            records.append(wandb_internal_pb2.Record.FromString(whole))
            whole = b""
    return records


def read_finished(path: Path, seconds: float = 10) -> list:
    """The records of a run that was finished; W&B's own process may write the last ones a moment later."""
    end = time.monotonic() + seconds
    while True:
        records = read_log(path)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < end, f"{path} has no exit record, only {len(records)} others"
        time.sleep(0.05)


def summary_of(records: list) -> dict:
    """What the summary ends as; keys are nested (`auroc/slof` is one key)."""
    ends: dict = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                ends[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return ends


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    result = example_result(n=400, rate=0.05, failed="lid")
    from analysis import figures
    from analysis.style import save

    save(figures.roc(result.cells, result.pairs.is_poison), folder, "roc")
    tracker = Tracker(mode="offline", tags=["trial"])
    with tracker.start(folder, CONFIG) as run:
        run.log({"epoch": 1, "loss": 3.5, "zero_shot_top1": 0.4})
        run.log({"epoch": 2, "loss": 2.5, "zero_shot_top1": 0.8})
        run.log({"epoch": 2, "loss": 9.9, "zero_shot_top1": 0.0})  # already logged
        run.record(result, folder)
    files = list((folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    return result, read_finished(files[0]), files[0].parent


def test_the_offline_log_holds_the_aurocs_of_the_results(offline):
    result, records, _ = offline
    ends = summary_of(records)
    for cell in result.cells:
        name = f"auroc/{cell.row['detector']}" + ("" if cell.row["normalise"] else "_raw")
        if cell.row["status"] == "failed":
            assert name not in ends
        else:
            assert ends[name] == pytest.approx(cell.row["auroc"], abs=1e-12)
    assert ends["asr"] == 0.98
    assert ends["zero_shot_top1"] == pytest.approx(result.metadata["zero_shot_top1"])
    assert ends["cells_failed"] == 2


def test_the_run_is_grouped_tagged_and_configured(offline):
    _, records, _ = offline
    run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
    assert (run.run_group, run.job_type, run.display_name) == ("badnets", "detect", "badnets-seed3")
    assert list(run.tags) == ["badnets", "shapes", "seed 3", "slof", "lid", "trial"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["seed"] == 3
    assert config["attack_name"] == "badnets"
    assert config["detectors"] == ["lid", "slof"]
    assert config["attack"]["rate"] == 0.005


def test_epochs_are_logged_once_each(offline):
    _, records, _ = offline
    seen = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            line = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}
            if "epoch" in line:
                seen.append((line["epoch"], line["train/loss"], line["train/zero_shot_top1"]))
    assert seen == [(1, 3.5, 0.4), (2, 2.5, 0.8)]


def test_table_and_images_lie_in_the_runs_folder(offline):
    _, _, folder = offline
    media = [path.name for path in folder.rglob("files/media/**/*") if path.is_file()]
    assert any(name.startswith("cells") and name.endswith(".json") for name in media)
    assert any(name.startswith("roc") and name.endswith(".png") for name in media)


def test_history_of_the_result_fills_in_a_training_from_the_store(tmp_path):
    result = example_result(n=50, rate=0.1)
    result.history = [{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}]
    with Tracker().start(tmp_path, CONFIG) as run:
        run.log({"epoch": 2, "loss": 2.0})
        run.record(result)
        assert run._epochs == {1, 2}


def test_one_run_per_cell_on_request(tmp_path):
    result = example_result(n=50, rate=0.1)
    result.cells = [cell for cell in result.cells if cell.row["detector"] in ("slof", "norm")]
    with Tracker(cells=True).start(tmp_path, CONFIG) as run:
        run.record(result)
    names = set()
    for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb"):
        records = read_finished(file)
        run = next(record.run for record in records if record.WhichOneof("record_type") == "run")
        names.add((run.job_type, run.display_name))
    assert names == {
        ("detect", "badnets-seed3"),
        ("cell", "badnets-slof-seed0"),
        ("cell", "badnets-slof_raw-seed0"),
        ("cell", "badnets-norm_raw-seed0"),
    }


def test_disabled_writes_nothing_and_does_not_import_wandb(tmp_path):
    code = (
        "import sys; from experiments.pipeline.tracking import Tracker\n"
        f"with Tracker(mode='disabled').start({str(tmp_path / 'x')!r}, {{'seed': 0}}) as run:\n"
        "    run.log({'epoch': 1}); run.record(None)\n"
        "print('wandb' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_process_of_a_distributed_run_tracks(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Tracker().start(tmp_path, CONFIG) as run:
        run.log({"epoch": 1})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_run_is_marked(tmp_path):
    with pytest.raises(KeyError, match="stop"), Tracker().start(tmp_path, CONFIG):
        raise KeyError("stop")
    (file,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    exits = [r.exit.exit_code for r in read_finished(file) if r.WhichOneof("record_type") == "exit"]
    assert exits == [1]


@pytest.mark.parametrize("home", ["/proc/no/home", None])
def test_a_home_that_cannot_be_written_to_prints_nothing(tmp_path, home):
    blocked = tmp_path / "file"
    blocked.touch()  # no folder can be made below a file
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from experiments.pipeline.tracking import Tracker\n"
        f"with Tracker().start({str(tmp_path / 'x')!r}, {{'seed': 0}}) as run: run.log({{'epoch': 1}})"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean | {"HOME": home or str(blocked)},
    )
    lines = [line for line in done.stderr.splitlines() if "wandb sync" not in line]
    assert lines == []


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "badnets-seed3"),
        ({"attack": {"name": "none"}}, "clean-shapes-seed3"),
        ({"attack": {"name": "none"}, "task": {"_target_": "experiments.tasks.Scan"}}, "scan-shapes-seed3"),
    ],
)
def test_a_run_is_named_by_what_it_does(tmp_path, monkeypatch, changes, name):
    opened = []
    monkeypatch.setattr(Tracker, "_open", lambda self, **about: opened.append(about))
    Tracker().start(tmp_path, {**CONFIG, **changes})
    assert opened[0]["name"] == name


def test_a_refused_run_does_not_ask_to_be_uploaded(tmp_path, caplog):
    with caplog.at_level(logging.INFO), pytest.raises(FileNotFoundError), Tracker().start(tmp_path, CONFIG):
        raise FileNotFoundError("no table")
    assert "wandb sync" not in caplog.text


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="one of online, offline, disabled, not 'on'"):
        Tracker(mode="on")


def test_online_without_an_account_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match=r"logger=online: W&B could not start a run .*logger=offline"):
        Tracker(mode="online").start(tmp_path, CONFIG)


@pytest.mark.parametrize("mode", tracking.MODES)
def test_the_logger_configurations(mode):
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    with initialize_config_dir(str(CONF / "logger"), version_base="1.3"):
        tracker = instantiate(compose(mode))
    assert (tracker.mode, tracker.project, tracker.cells) == (mode, "lookout", False)


def test_summary_leaves_out_what_is_missing():
    result = example_result(n=50, rate=0.1, asr=None)
    result.cells[0].row["auroc"] = float("nan")
    values = tracking.summary(result)
    assert "asr" not in values
    assert f"auroc/{result.cells[0].row['detector']}" not in values
