"""Scan, look, clean, rescan on tiny data; parts of a scan against the whole; inversion; clean and retrain."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from browser_example import Browser, needs_browser
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from analysis.__main__ import main as analysis
from analysis.peers import read_defences
from experiments.data.damage import TooMuchDamage
from experiments.data.shapes.export import LEFT_OUT, Export
from experiments.pipeline import config as schema
from experiments.pipeline.runner import Runner
from experiments.runtime.store import file_digest
from experiments.tasks.perform import perform

ROOT = Path(__file__).parents[2]
TINY = [
    "data.pairs=400",
    "data.test_per_class=8",
    "data.classes=4",
    "train.epochs=1",
    "scale.attacks.badnets.rate=0.05",
    "train.batch_size=100",
    "neighbours.batch_size=100",
    "scale.k=8",
    "scale.wide_k=8",
    "logger=disabled",
    "detector=[slof,dao]",
    "normalise=[true]",
    "runtime.workers=1",
]
SHARDS = [
    "task=scan",
    "data=webdataset",
    "data.size=32",
    "data.max_damaged=0.5",
    "neighbours.batch_size=30",
    "scale.k=8",
    "scale.wide_k=8",
    "logger=disabled",
    "detector=[slof,dao]",
    "normalise=[true]",
    "runtime.workers=1",
]

DECODERS = ("pillow", "device")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def do(store, tmp_path_factory):
    """Compose, run the task, return the folder it wrote to."""
    schema.register()

    def done(*overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", [f"runtime.store={store}", *overrides])
        folder = tmp_path_factory.mktemp("run")
        perform(config.task, Runner.of(config), folder)
        return folder

    return done


@pytest.fixture(scope="module")
def scanned(do):
    return do(*TINY, "task=scan", "attack=badnets")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    Export(folder, pairs=160, shards=4, size=32, damage=1).write()
    return folder


@pytest.fixture(scope="module")
def model(scanned, store):
    found = [meta.parent for meta in store.glob("train/*/meta.json")]
    return min(found, key=lambda folder: (folder / "meta.json").stat().st_mtime)


def test_scan_ranks_every_sample_and_tells_the_metrics(scanned):
    scores = pd.read_parquet(scanned / "scores.parquet")
    assert sorted(scores["rank"]) == list(range(1, 401))
    known = {"key", "shard", "url", "uid", "width", "height", "sha256"}
    found = {"slof", "dao", "score", "p", "rank", "group", "duplicates"}
    assert {"id", "caption", "status"} | known | found == set(scores.columns)
    assert (scores["status"] == "scored").all()
    assert (scores.sort_values("rank")["p"].diff().dropna() >= 0).all()
    ranks = scores[["slof", "dao"]].rank().mean(axis=1)
    assert np.corrcoef(ranks, scores["score"])[0, 1] == pytest.approx(1)
    assert (scores.sort_values("rank")["score"].diff().dropna() <= 0).all()
    rows = pd.read_csv(scanned / "results.csv")
    assert list(rows["detector"]) == ["slof", "dao", "score"]
    assert rows["auroc"].between(0, 1).all()
    assert (rows["fpr100"] >= rows["fpr95"]).all()
    page = (scanned / "suspects.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    data = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    assert data["order"][0] == int(scores["rank"].argmin())
    assert len(data["near"][str(data["order"][0])]) == 6


def test_parts_give_the_scores_of_the_whole(do, shards, model, store):
    split = [*SHARDS, f"data.shards={shards}", f"model.folder={model}", "model=trained", "task.shards_per_part=2"]
    whole = pd.read_parquet(do(*split, f"runtime.store={store}/whole") / "scores.parquet")
    tables = {}
    for part in (1, 0):  # whoever computes which, in any order
        folder = do(*split, "task.parts=2", f"task.part={part}")
        assert not (folder / "scores.parquet").exists()
        tables[part] = folder / f"part-{part:05d}.parquet"
        assert (folder / f"suspects-{part:05d}.parquet").exists()
    by_part = pd.concat([pd.read_parquet(tables[part]) for part in (0, 1)]).sort_values("id", ignore_index=True)
    shared = [name for name in by_part if name in whole]
    assert {"id", "key", "shard", "url", "caption", "slof", "dao", "status"} <= set(shared)
    one, other = (table[shared].astype(object).where(table[shared].notna(), None) for table in (by_part, whole))
    pd.testing.assert_frame_equal(one, other)
    merged = pd.read_parquet(do(*split) / "scores.parquet")
    pd.testing.assert_frame_equal(whole, merged)
    assert merged["id"].is_unique
    assert sorted(merged["shard"].unique()) == [f"{number:05d}.tar" for number in range(4)]
    assert merged["key"].notna().all()


def test_torchvision_decodes_for_embeddings_of_their_own(do, shards, model, store):
    given = [*SHARDS, f"data.shards={shards}", f"model.folder={model}", "model=trained"]
    given.append(f"runtime.store={store}/decoded")
    one, other = (pd.read_parquet(do(*given, f"runtime.decoder={name}") / "scores.parquet") for name in DECODERS)
    assert one["id"].equals(other["id"])
    assert np.corrcoef(one["slof"].dropna(), other["slof"].dropna())[0, 1] > 0.95
    assert len(list(store.glob("decoded/embed/*/image.npy"))) == 2


@pytest.mark.slow
def test_two_processes_scan_as_one(do, shards, model, tmp_path):
    given = [*SHARDS, f"data.shards={shards}", "model=trained", f"model.folder={model}"]
    alone = pd.read_parquet(do(*given, f"runtime.store={tmp_path}/alone") / "scores.parquet")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            str(ROOT / "run.py"),
            *given,
            f"runtime.store={tmp_path}/store",
            f"hydra.run.dir={tmp_path}/run",
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "scores.parquet"), alone)
    assert (tmp_path / "run" / "suspects.html").exists()


def page_data(folder):
    page = (folder / "suspects.html").read_text()
    return json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])


def test_clean_writes_shards_that_scan_again_without_the_suspects(do, shards, model, tmp_path):
    given = [*SHARDS[1:], f"data.shards={shards}", "model=trained", f"model.folder={model}"]
    new = tmp_path / "cleaned"
    cleaning = (
        "task=clean",
        *given,
        "task.remove.count=10",
        "task.remove_groups=false",
        f"task.write_shards={new}",
    )
    first = do(*cleaning)
    removed, kept = pd.read_parquet(first / "removed.parquet"), pd.read_parquet(first / "kept.parquet")
    assert len(removed) == 10
    assert not set(removed["id"]) & set(kept["id"])
    assert [int(line) for line in (first / "kept.txt").read_text().split()] == list(kept["id"])
    written = {path.name: path.read_bytes() for path in new.glob("*.tar")}
    do(*cleaning)  # once more: what is there is what would be written
    assert written == {path.name: path.read_bytes() for path in new.glob("*.tar")}
    with pytest.raises(ValueError, match=r"cleaned with another task\.remove"):
        do(*cleaning, "task.remove.count=11", "runtime.store=never")
    assert not Path("never").exists()
    given[given.index(f"data.shards={shards}")] = f"data.shards={new}"
    again = pd.read_parquet(do("task=scan", *given) / "scores.parquet")
    assert (again["status"] == "scored").all()  # nothing that was not scored has come through
    assert len(again) == len(kept)
    assert set(again["key"]) == set(kept["key"])
    with pytest.raises(ValueError, match="new or empty folder"):
        do("task=clean", *given, "task.remove.count=10", f"task.write_shards={shards}")


@needs_browser
def test_what_is_decided_on_the_page_is_cleaned_away_and_scans_again(do, shards, model, tmp_path):
    """Scan, decide in a browser, clean by that file, scan the cleaned shards."""
    given = [*SHARDS[1:], "model=trained", f"model.folder={model}"]
    scanned, new = do("task=scan", *given, f"data.shards={shards}"), tmp_path / "cleaned"
    before = pd.read_parquet(scanned / "scores.parquet").sort_values("rank")
    browser = Browser(tmp_path / "browser")
    try:
        browser.open(scanned / "suspects.html")
        browser.press("g", "p", "f", "u", "p")  # the first four by rank
        browser.click("#export")
        decisions = browser.downloaded("decisions.csv")
        assert browser.complaints == []
    finally:
        browser.close()
    first = before["key"].head(4).tolist()
    cleaning = ["task=clean", *given, f"data.shards={shards}", f"task.decisions={decisions}"]
    cleaning.append(f"task.write_shards={new}")
    cleaned = do(*cleaning)
    assert pd.read_parquet(cleaned / "removed.parquet")["key"].tolist() == [first[0], first[3]]
    for form, file in (("embedding-atlas", "atlas.parquet"), ("fiftyone", "fiftyone/labels.json")):
        assert analysis(["export", str(cleaned), "--to", form, "--out", str(tmp_path)]) == 0
        assert (tmp_path / file).exists()
    report = json.loads((new / "cleaned.json").read_text())
    assert report["decisions"] == {"fine": 1, "poison": 2, "unsure": 1}
    assert (report["removed"], report["kept"] + report["removed"]) == (2, len(before) - len(LEFT_OUT))
    assert "2 poison, removed (2 of them for this reason alone)" in (cleaned / "summary.md").read_text()
    again = pd.read_parquet(do("task=scan", *given, f"data.shards={new}") / "scores.parquet")
    assert set(before["key"][before["status"] == "scored"]) - set(again["key"]) == {first[0], first[3]}
    decisions.write_text(decisions.read_text().replace("fine", "poison"))
    with pytest.raises(ValueError, match=r"cleaned with another task\.decisions"):
        do(*cleaning)
    both = do(
        *cleaning[:-1], "task.remove.count=3", "task.remove_groups=false"
    )  # 1 and 2 poison, 3 unsure, 4 poison
    assert set(pd.read_parquet(both / "removed.parquet")["key"]) == set(first)
    decisions.write_text("shard,key,decision\n00000.tar,nobody,fine\n")
    with pytest.raises(ValueError, match=r"shard '00000.tar' key 'nobody' is none of the \d+ samples"):
        do(*cleaning[:-1])


def test_what_has_no_score_is_dropped_counted_and_listed(do, shards, model, tmp_path):
    given = ["task=clean", *SHARDS[1:], f"data.shards={shards}", "model=trained", f"model.folder={model}"]
    given += ["task.remove.count=10", "task.remove_groups=false", f"task.write_shards={tmp_path / 'new'}"]
    folder = do(*given)
    scores = pd.read_parquet(folder / "scores.parquet")
    unscored = scores[scores["status"] != "scored"]
    assert unscored["status"].value_counts().to_dict() == dict.fromkeys(LEFT_OUT, 1)
    assert unscored[["key", "shard"]].notna().all(axis=None)
    assert unscored[["score", "rank", "slof", "caption"]].isna().all(axis=None)
    assert scores["rank"].max() == len(scores) - len(unscored)
    shown = {sample["id"] for sample in page_data(folder)["samples"].values()}
    assert shown <= set(scores["id"].astype(str))  # whole, not rounded to JavaScript's numbers
    row = pd.read_csv(folder / "results.csv").iloc[0]
    assert row["kept"] + row["removed"] + row["unscored"] == row["members"] == len(scores)
    assert (row["unscored"], row["removed"], row["written"]) == (len(LEFT_OUT), 10, row["kept"])
    report = json.loads((tmp_path / "new/cleaned.json").read_text())
    assert report["unscored"] == page_data(folder)["cleaned"]["unscored"] == dict.fromkeys(LEFT_OUT, 1)
    for counts in [report, *report["shards"].values()]:
        assert counts["kept"] + counts["removed"] + sum(counts["unscored"].values()) == counts["members"]
    summary = (folder / "summary.md").read_text()
    assert f"{len(LEFT_OUT)} samples have no score, and are dropped:** " in summary
    assert all(f"{kind} 1" in summary for kind in LEFT_OUT)
    assert page_data(folder)["metadata"]["unscored"] == report["unscored"]


def test_what_has_no_score_is_kept_if_asked_for(do, shards, model, tmp_path):
    given = ["task=clean", *SHARDS[1:], f"data.shards={shards}", "model=trained", f"model.folder={model}"]
    given += ["task.remove.count=10", f"task.write_shards={tmp_path / 'new'}", "task.unscored=keep"]
    folder = do(*given)
    row, kept = pd.read_csv(folder / "results.csv").iloc[0], pd.read_parquet(folder / "kept.parquet")
    assert len(kept) == row["written"] == row["kept"] + len(LEFT_OUT)
    assert (kept["status"] != "scored").sum() == len(LEFT_OUT)


def test_known_clean_samples_calibrate_the_threshold_and_stay(do, scanned, tmp_path):
    scores = pd.read_parquet(scanned / "scores.parquet").sort_values("rank")
    known = scores["id"].iloc[::4]  # the one that ranks highest among them
    (tmp_path / "clean.txt").write_text("\n".join(map(str, known)))
    given = [*TINY, "task=clean", "attack=badnets", f"task.remove.reference={tmp_path / 'clean.txt'}"]
    folder = do(*given, "task.remove.false_positives=0.05", "task.grouping.alarm_strength=0.01")
    after = pd.read_parquet(folder / "scores.parquet").set_index("id")
    assert (after.loc[known, "fate"] == "kept").all()
    assert after.loc[known, "known_clean"].all()
    assert (after.sort_values("rank")["p"].diff().dropna() >= 0).all()
    away = after[(after["fate"] == "removed") & (after["group"] == 0)]
    assert (away["p"] <= 0.05).all()
    assert len(after[after["fate"] == "removed"]) >= 12
    assert "by " in (folder / "summary.md").read_text()


def test_held_out_samples_and_those_outside_a_subset_are_unscored_too(do, shards, model):
    given = [*SHARDS, f"data.shards={shards}", "model=trained", f"model.folder={model}"]
    folder = do(*given, "task.holdout=0.3", "data.subset=120", "data.classes=4")
    kinds = page_data(folder)["metadata"]["unscored"]
    scores = pd.read_parquet(folder / "scores.parquet")
    assert kinds["held out"] > 0
    assert kinds["not in the subset"] == len(scores) - 120
    assert scores["status"].value_counts().drop("scored").to_dict() == kinds


def test_samples_too_few_for_k_or_none_are_refused_in_one_line(do, model, tmp_path):
    Export(tmp_path / "few", pairs=20, shards=1, size=32).write()
    given = [*SHARDS, "model=trained", f"model.folder={model}", f"data.shards={tmp_path / 'few'}"]
    with pytest.raises(ValueError, match=r"detector\.slof\.k must lie in 1\.\.19, got 32: there are 20 samples"):
        do(*given, "scale.k=32", "neighbours.batch_size=2048")
    for number in range(3):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / f"images/{number}.jpg").write_bytes(b"<html>")
    (tmp_path / "images/data.csv").write_text("filepath,title\n0.jpg,a cat\n1.jpg,a dog\n2.jpg,a cow\n")
    table = ["data=csv", f"data.table={tmp_path}/images/data.csv", "data.max_damaged=1", "data.classes=[cat,dog]"]
    with pytest.raises(ValueError, match=r"no sound sample to scan; left out: not an image 3"):
        do(*given[:1], *given[2:-1], *table)


def test_a_table_of_images_names_what_it_left_out(do, model, tmp_path):
    Export(tmp_path, pairs=40, shards=1, size=32).write()
    with tarfile.open(tmp_path / "00000.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    names = sorted(path.name for path in tmp_path.glob("*.jpg"))
    (tmp_path / names[3]).write_bytes(b"")
    (tmp_path / "data.csv").write_text("filepath,title\n" + "".join(f"{name},a {name[-7]}\n" for name in names))
    given = [option for option in SHARDS[1:] if option != "data=webdataset"]
    given += ["data=csv", f"data.table={tmp_path}/data.csv", "model=trained", f"model.folder={model}"]
    folder = do("task=clean", *given, "task.remove.count=4", "task.remove_groups=false")
    scores = pd.read_parquet(folder / "scores.parquet")
    assert list(scores["key"]) == names
    assert scores["status"][3] == "empty file"
    assert len(pd.read_parquet(folder / "kept.parquet")) == 40 - 4 - 1
    row = pd.read_csv(folder / "results.csv").iloc[0]
    assert (row["kept"], row["removed"], row["unscored"], row["members"]) == (35, 4, 1, 40)


def test_data_that_cannot_be_read_are_no_detectors_failure(do, shards, model, tmp_path, caplog):
    given = [*SHARDS, f"data.shards={shards}", "model=trained", f"model.folder={model}"]
    with pytest.raises(TooMuchDamage):
        do(*given, "data.max_damaged=0.001", f"runtime.store={tmp_path}")
    assert "failed" not in caplog.text


def test_inversion_reports_a_mask_and_its_success(do, scanned):
    folder = do(*TINY, "task=invert", "attack=badnets", "task.steps=6", "task.images=8", "task.batch=8")
    row = json.loads((folder / "trigger.json").read_text())
    arrays = np.load(folder / "trigger.npz")
    assert arrays["mask"].shape == (32, 32)
    assert arrays["pattern"].shape == (32, 32, 3)
    assert row["area"] == pytest.approx(float(arrays["mask"].mean()), rel=1e-5)
    assert 0 <= row["success"] <= 1
    assert (folder / "trigger.png").exists()


def test_an_inspection_gives_one_verdict_and_goes_on_where_it_was(do, store):
    settings = ("steps=3", "images=8", "batch=8", "success=0.1")
    tiny = [*TINY, "data.classes=6", "task=inspect", "attack=badnets", *(f"task.{one}" for one in settings)]
    folder = do(*tiny, "runtime.workers=2")
    (row,) = pd.read_csv(folder / "results.csv").to_dict("records")
    assert row["verdict"] in ("backdoored", "no alarm", "undecided")
    assert row["classes"] == len(pd.read_csv(folder / "classes.csv")) == 6
    assert (folder / "triggers.png").exists()
    entries = {file: file.stat().st_mtime_ns for file in (store / "invert").glob("*/meta.json")}
    assert len(entries) == 6
    again = do(*tiny, f"task.references=[{store / 'train' / row['trained']}]")
    assert all(file.stat().st_mtime_ns == time for file, time in entries.items())
    (compared,) = pd.read_csv(again / "results.csv").to_dict("records")
    assert compared["references"] == 1
    assert compared["z"] == 0  # a model compared with itself


def test_clean_and_retrain_compares_with_clean_data_and_chance(do, scanned):
    tiny = [option.replace("[slof,dao]", "[tandem,slof]") for option in TINY] + ["task.rank_by=tandem"]
    folder = do(*tiny, "task=clean_and_retrain", "task.shares=[0.1]", "task.random_shares=[0.1]")
    rows = pd.read_csv(folder / "results.csv")
    assert list(rows["removed"])[:2] + list(rows["removed"])[-2:] == [0, 0, 40, 40]
    assert list(rows["poisons_left"])[:2] == [20, 0]
    assert rows["asr"].between(0, 1).all()
    assert rows["zero_shot_top1"].between(0, 1).all()


def test_defences_meet_the_same_poison(do, scanned, store):
    tiny = [option.replace("[slof,dao]", "[tandem,slof]") for option in TINY] + ["task.rank_by=tandem"]
    ways = [f"task.ways.{way}" for way in ("cleanclip", "roclip", "safeclip", "par", "repair")]
    folder = do(
        *tiny,
        "task=defences",
        f"{ways[0]}.finetune=0.25",
        f"{ways[0]}.train.epochs=1",
        f"{ways[0]}.train.lr=1e-9",
        f"{ways[1]}.train.epochs=2",
        f"{ways[2]}.train.epochs=3",
        f"{ways[2]}.train.loss.unimodal=1",
        *(f"{way}.{setting}" for way in ways[3:] for setting in ("finetune=0.25", "train.epochs=1")),
        *(f"{ways[4]}.inversion.{setting}" for setting in ("steps=2", "batch=8", "images=8")),
    )
    rows = pd.read_csv(folder / "results.csv").set_index("trained_on")
    names = [
        "undefended",
        "CleanCLIP, fine-tuned",
        "RoCLIP",
        "SafeCLIP",
        "PAR, fine-tuned",
        "repaired after inversion",
    ]
    assert list(rows.index) == [*names, "retrained, 10 % less by the ranking", "clean data"]
    assert list(rows["poisons_left"].drop(rows.index[6])) == [20, 20, 20, 20, 20, 20, 0]
    assert list(rows["trainings"]) == [1, 1 + 2 * 0.25, 2, 2 * 3, 1 + 0.25, 1 + 0.25 + 2 * 8 / 400, 1.9, 1]
    assert rows["asr"].between(0, 1).all()
    assert len((folder / "summary.md").read_text().splitlines()) == 4 + len(rows)
    # The rows are kept in the store too, where `python -m analysis` finds them.
    kept = {row["trained_on"]: row for row in read_defences(store)}
    assert set(kept) == set(rows.index)
    assert {name: row["asr"] for name, row in kept.items()} == pytest.approx(dict(rows["asr"]))
    assert {(row["attack"], row["scale"], row["data"]) for row in kept.values()} == {("badnets", "demo", "shapes")}
    # With next to no learning rate, the fine-tuned model is the one it started from, wherever that lies.
    metas = [json.loads(meta.read_text()) for meta in store.glob("train/*/meta.json")]
    tuned = next(
        meta
        for meta in metas
        if meta["config"]["model_spec"]["model"].get("finetune")
        and meta["config"]["training"]["loss"]["_target_"].endswith("CleanCLIPLoss")
    )
    digest = tuned["config"]["model_spec"]["files"]["weights.safetensors"]
    weights = {meta["key"]: store / "train" / meta["key"] / "weights.safetensors" for meta in metas}
    start = next(meta for meta in metas if file_digest(weights[meta["key"]]) == digest)
    assert start["config"]["model_spec"]["model"]["_target_"].endswith("SmallCLIP")
    assert "train_ids" not in start["inputs"]
    assert "plan" in start["inputs"]
    one, other = (load_file(store / "train" / meta["key"] / "weights.safetensors") for meta in (tuned, start))
    assert all(torch.allclose(one[name], other[name], atol=1e-5) for name in one if not name.startswith("visual."))
    assert set(tuned["config"]["model_spec"]["files"]) == {"model.json", "weights.safetensors"}
    assert str(store) not in json.dumps(tuned["config"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task=defences", "detector=[tandem,slof]", "task.rank_by=tandem"],
            "finetune of CleanCLIP.* a batch of 100 pairs, got 0.05 of 400",
        ),
        (
            ["task=defences", "detector=[tandem,slof]", "task.rank_by=tandem", "task.ways.cleanclip.finetune=0"],
            r"finetune of CleanCLIP.* must lie in \(0, 1\], got 0",
        ),
        (
            [
                "task=defences",
                "detector=[tandem,slof]",
                "task.rank_by=tandem",
                "+task.ways.cleanclip.train.epoch=3",
                "data.pairs=4000",
            ],
            "sets train.epoch, which does not exist",
        ),
        (["task=scan", "detector=[norm]"], "rank_by=density needs"),
        (["task=scan", "task.rank_by=slofx"], "rank_by must be"),
        (["task=scan", "task.shards_per_part=2"], "needs data=webdataset"),
        (["task=clean"], "exactly one"),
        (["task=clean", "task.remove.cut=6"], r"cut=6 is no longer known.*task\.remove\.false_positives"),
        (["task=clean", "task.remove.share=many"], r"task\.remove\.share must be a number or null, got 'many'"),
        (["task=clean", "task.remove.fdr=0.1"], r"fdr needs task\.remove\.reference"),
        (["task=clean", "task.remove.fdr=0.1", "task.remove.reference=none.txt"], "must be a file"),
        (["task=clean", "task.remove.share=0.1", "task.unscored=maybe"], "must be drop or keep, got 'maybe'"),
        (["task=scan", "task.gallery=many"], r"task\.gallery must be a whole number, got 'many'"),
        (["task=scan", "task.parts=0"], r"task\.parts must be a whole number of at least 1, got 0"),
        (["task=scan", "task.holdout=1.5"], r"task\.holdout must lie in \[0, 1\)"),
        (["task=clean", "task.remove.count=5", "task.write_shards=new"], "needs data=webdataset"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(do, overrides, message):
    with pytest.raises(Exception, match=message):
        do(*TINY, *overrides, "runtime.store=never")
    assert not Path("never").exists()
