"""Scans of the same samples from tar shards, Parquet files and a folder of pictures, with one small model."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir

from experiments.data.shapes.export import Export
from experiments.pipeline import config as schema
from experiments.pipeline.runner import Runner
from experiments.tasks.perform import perform
from experiments.tasks.rank import main as rank

ROOT = Path(__file__).parents[2]
TINY = ["data.pairs=200", "data.test_per_class=4", "data.classes=4", "train.epochs=1", "train.batch_size=100"]
SCAN = [
    "neighbours.batch_size=100",
    "scale.k=8",
    "scale.wide_k=8",
    "logger=disabled",
    "detector=[slof,dao]",
    "normalise=[true]",
    "runtime.workers=1",
]


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
def model(do, store):
    do(*TINY, *SCAN, "task=scan", "attack=none")
    return [f"model.folder={next(store.glob('train/*/meta.json')).parent}", "model=trained", "data.size=32"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    Export(folder, pairs=160, shards=2, size=32).write()
    return folder


def samples(shards):
    """Key, image file and caption of each sample, in the order of the shards."""
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            files = {member.name: tar.extractfile(member).read() for member in tar}
        for name in files:
            if name.endswith(".jpg"):
                yield name[:-4], files[name], files[f"{name[:-4]}.txt"].decode()


@pytest.fixture(scope="module")
def parquet(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parquet")
    found = list(samples(shards))
    for number in range(2):
        part = found[80 * number : 80 * number + 80]
        images = pa.array(
            [{"bytes": content, "path": f"{key}.jpg"} for key, content, _ in part],
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        )
        columns = {"image": images, "text": [caption for *_, caption in part], "key": [key for key, *_ in part]}
        columns["url"] = [f"https://host{row % 4}.org/{row}.jpg" for row in range(len(part))]
        pq.write_table(pa.table(columns), folder / f"train-{number:05d}-of-00002.parquet", row_group_size=20)
    return folder


def of_shards(shards):
    return ["task=scan", "data=webdataset", f"data.shards={shards}", "neighbours.scope=full"]


def scores(folder):
    return pd.read_parquet(folder / "scores.parquet")


@pytest.mark.parametrize("storage", ["array", "files"])
def test_parquet_scans_as_the_shards_do(do, model, shards, parquet, storage):
    one = scores(do(*SCAN, *model, *of_shards(shards)))
    given = ["task=scan", "data=parquet", f"data.path={parquet}", f"data.storage={storage}"]
    other = scores(do(*SCAN, *model, *given, "neighbours.scope=full"))
    one, other = (table.sort_values("key").reset_index(drop=True) for table in (one, other))
    assert list(one["key"]) == list(other["key"])
    assert list(one["caption"]) == list(other["caption"])
    np.testing.assert_allclose(one["slof"], other["slof"], rtol=1e-4)
    assert set(other["shard"]) == {f"train-{number:05d}-of-00002.parquet" for number in range(2)}
    assert other["url"].str.startswith("https://host").all()


def test_parquet_is_cleaned_to_new_files_and_lists_of_what_stays(do, model, parquet, tmp_path):
    given = [*SCAN, *model, "task=clean", "data=parquet", f"data.path={parquet}", "task.remove.count=10"]
    given += ["task.remove_groups=false", f"task.write_shards={tmp_path / 'new'}"]
    folder = do(*given)
    kept, gone = pd.read_parquet(folder / "kept.parquet"), pd.read_parquet(folder / "removed.parquet")
    assert (len(kept), len(gone)) == (150, 10)
    files = sorted((tmp_path / "new").glob("*.parquet"))
    assert [file.name for file in files] == [file.name for file in sorted(parquet.glob("*.parquet"))]
    written = pd.concat(map(pd.read_parquet, files))
    assert list(written["key"]) == list(kept.sort_values("key")["key"])
    assert not set(written["key"]) & set(gone["key"])
    assert "150 samples written in 2 new shards." in (folder / "summary.md").read_text()
    rescan = do(*SCAN, *model, "task=scan", "data=parquet", f"data.path={tmp_path / 'new'}")
    assert set(scores(rescan)["key"]) == set(kept["key"])
    with pytest.raises(ValueError, match=r"new holds shards cleaned with another task\.remove"):
        do(*given, "task.remove.count=11")


def test_decisions_about_parquet_are_followed_and_unknown_ones_refused(do, model, parquet, tmp_path):
    given = [*SCAN, *model, "task=clean", "data=parquet", f"data.path={parquet}"]
    given += [f"task.decisions={tmp_path / 'decisions.csv'}", f"task.write_shards={tmp_path / 'new'}"]
    rows = scores(do(*SCAN, *model, "task=scan", "data=parquet", f"data.path={parquet}")).sort_values("rank")
    chosen = rows.iloc[[0, 5, 9]][["id", "shard", "key"]].assign(decision=["fine", "poison", "unsure"])
    chosen.assign(key="of other data").to_csv(tmp_path / "decisions.csv", index=False)
    with pytest.raises(ValueError, match="was it decided on other data"):
        do(*given)
    assert not (tmp_path / "new").exists()
    chosen[["key", "decision"]].replace(chosen["key"].iloc[2], "nobody").to_csv(
        tmp_path / "decisions.csv", index=False
    )
    with pytest.raises(ValueError, match="key 'nobody' is none of the 160 samples"):
        do(*given)
    chosen.to_csv(tmp_path / "decisions.csv", index=False)
    do(*given, "task.remove.count=3", "task.remove_groups=false")
    written = pd.concat(map(pd.read_parquet, (tmp_path / "new").glob("*.parquet")))
    assert set(rows["key"]) - set(written["key"]) == set(rows["key"].iloc[[1, 2, 5]])


def test_parts_scanned_apart_end_with_one_page_and_one_list(do, model, parquet, tmp_path):
    pytest.importorskip("duckdb", reason="optional extra `scale`")
    given = [*SCAN, *model, "task=scan", "data=parquet", f"data.path={parquet}", "neighbours.batch_size=40"]
    given += ["task.shards_per_part=1", "task.grouping.suspects=0.2"]
    whole = scores(do(*given)).sort_values("id", ignore_index=True)
    parts = [do(*given, "task.parts=2", f"task.part={part}") for part in (1, 0)]
    files = [next(folder.glob("part-*.parquet")) for folder in reversed(parts)]
    assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet"]
    assert rank([*map(str, files), "--remove", "count=5", "--keep-groups", "--out", str(tmp_path / "out")]) == 0
    ranked = pd.read_parquet(tmp_path / "out/scores.parquet").sort_values("id", ignore_index=True)
    same = ["id", "key", "score", "p"]
    pd.testing.assert_frame_equal(ranked[same], whole[same], check_dtype=False)
    kept = pd.read_parquet(tmp_path / "out/kept.parquet")
    assert sorted(kept["id"]) == sorted(ranked.loc[ranked["rank"] > 5, "id"])
    page = (tmp_path / "out/suspects.html").read_text()
    order = json.loads(page.partition('type="application/json">')[2].partition("</script>")[0])
    first = [order["samples"][str(row)]["id"] for row in order["order"][:20]]
    assert first == ranked.sort_values("rank")["id"].astype(str).tolist()[:20]
    assert page.count("data:image/") >= 20


def test_parquet_trains_a_model_too(do, parquet, tmp_path):
    given = ["data=parquet", f"data.path={parquet}", "data.storage=files", "data.size=32", *TINY[3:], *SCAN]
    folder = do(*given, "task=scan", f"runtime.store={tmp_path}")
    assert len(scores(folder)) == 160


@pytest.fixture(scope="module")
def pictures(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, (key, content, _) in enumerate(samples(shards)):
        place = folder / f"part{number % 3}"
        place.mkdir(exist_ok=True)
        (place / f"{key}.jpg").write_bytes(content)
    (folder / "part0/damaged.png").write_bytes(b"<html>")
    (folder / "part0/.hidden.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_pictures_without_captions_scan_as_the_pairs_do(do, model, shards, pictures):
    one = scores(do(*SCAN, *model, *of_shards(shards)))
    folder = do(*SCAN, *model, "task=scan", "data=pictures", f"data.path={pictures}", "neighbours.scope=full")
    other = scores(folder)
    assert other["status"].value_counts().to_dict() == {"scored": 160, "not an image": 1}
    other = other[other["status"] == "scored"].assign(key=other["key"].map(lambda path: Path(path).stem))
    one, other = (table.set_index("key").sort_index() for table in (one, other))
    np.testing.assert_allclose(one["slof"], other["slof"], rtol=1e-4)
    assert set(other["caption"]) == {""}
    assert "no captions" in (folder / "summary.md").read_text()
    cleaned = do(*SCAN, *model, "task=clean", "data=pictures", f"data.path={pictures}", "task.remove.count=9")
    assert len(pd.read_parquet(cleaned / "kept.parquet")) == 151


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["detector=[slof,clip_score]"], r"detector=clip_score compares captions.*'detector=\[slof\]'"),
        (["detector=[tandem]", "task.rank_by=tandem"], r"detector=tandem compares .*'detector=\[slof,lof,dao\]'"),
        (["neighbours.modality=joint"], r"detector=slof,dao compares captions"),
        (["attack=badnets"], "attack=badnets plants captions"),
        (["model=small"], "no model can be trained on them; give a trained one"),
    ],
)
def test_what_looks_at_captions_is_refused_for_pictures(do, model, pictures, options, message):
    given = [*SCAN, *model, "task=scan", "data=pictures", f"data.path={pictures}"]
    if "model=small" in options:
        given = [option for option in given if not option.startswith("model")]
    with pytest.raises(ValueError, match=message):
        do(*given, *options, "runtime.store=never")
    assert not Path("never").exists()


def test_a_data_set_of_the_library_scans_as_its_parquet_does(do, model, parquet, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = sorted(map(str, parquet.iterdir()))
    saved = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    saved.save_to_disk(str(tmp_path / "saved"))
    one = scores(do(*SCAN, *model, "task=scan", "data=parquet", f"data.path={parquet}"))
    given = ["task=scan", "data=hf", f"data.path={tmp_path / 'saved'}", "data.storage=files"]
    other = scores(do(*SCAN, *model, *given))
    assert len(other) == 160
    assert set(one["key"]) == set(other["key"])
    assert set(one["caption"]) == set(other["caption"])
