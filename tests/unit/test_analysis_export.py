"""What a scan and a clean have found, written for other tools and read back as those tools read it."""

import json
import tarfile
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from analysis.__main__ import main
from experiments.data.provenance import origins
from experiments.data.sample_ids import first_ids
from experiments.data.shapes.export import Export
from experiments.data.shards import Shards
from experiments.data.tables import Files
from experiments.tasks.scan_result import write_sources

N = 60


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """The folder of a clean of two shards of 30 samples: 58 scored, 5 of them removed, 2 unscored."""
    folder = tmp_path_factory.mktemp("run")
    Export(folder / "shards", pairs=N, shards=2, size=32).write()
    data = Shards(str(folder / "shards"), size=32, holdout=0.0)
    ids = np.concatenate([first + np.arange(N // 2) for first in first_ids(data.urls)])
    found = origins(data, ids)
    rank = pd.array([*np.arange(N - 2)[::-1] + 1, None, None], "Int64")
    fate = np.where(rank.to_numpy(float, na_value=N) <= 5, "removed", "kept")
    table = pd.DataFrame({"id": ids, "key": found["key"], "shard": found["shard"], "rank": rank})
    table = table.assign(caption=[f"a {row}" for row in range(N)], score=-rank.to_numpy(float, na_value=np.nan))
    table = table.assign(
        status=["scored"] * (N - 2) + ["broken image"] * 2, uid=[f"{row:032X}" for row in range(N)]
    )
    table = table.assign(fate=np.where(table["status"] == "scored", fate, "unscored"), decision="", note="")
    table.loc[57, "decision"] = "poison"
    table = table.sort_values("id", ignore_index=True)
    (folder / "embed").mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "embed/ids.npy", ids[:58])
    np.save(folder / "embed/image.npy", rng.normal(size=(58, 16)).astype(np.float32))
    write_sources(SimpleNamespace(sources=[data], folders=[folder / "embed"]), folder)
    table.to_parquet(folder / "scores.parquet", index=False)
    table[table["fate"] == "kept"][["id"]].to_parquet(folder / "kept.parquet", index=False)
    return folder, table


def test_the_atlas_has_coordinates_and_true_neighbours(cleaned, tmp_path):
    folder, _ = cleaned
    given = ["export", str(folder), "--to", "embedding-atlas", "--out", str(tmp_path), "--neighbours", "4"]
    assert main(given) == 0
    atlas = pd.read_parquet(tmp_path / "atlas.parquet")
    assert atlas["rank"].tolist() == list(range(1, 59))  # the row of a sample is its place in the file
    assert {"projection_x", "projection_y", "caption", "score", "id", "key"} <= {*atlas}
    assert np.isfinite(atlas[["projection_x", "projection_y"]]).all(axis=None)
    kind = pq.read_schema(tmp_path / "atlas.parquet").field("neighbors").type
    assert {field.name for field in kind} == {"ids", "distances"}
    ids, image = np.load(folder / "embed/ids.npy"), np.load(folder / "embed/image.npy")
    unit = image / np.linalg.norm(image, axis=1, keepdims=True)
    unit = unit[[ids.tolist().index(one) for one in atlas["id"]]]
    distances = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    for row, near in enumerate(atlas["neighbors"]):
        assert near["ids"].tolist() == np.argsort(distances[row])[:4].tolist()
        np.testing.assert_allclose(near["distances"], np.sort(distances[row])[:4], atol=1e-5)


def test_datacomp_reads_the_kept_uids(cleaned, tmp_path):
    folder, table = cleaned
    main(["export", str(folder), "--to", "datacomp", "--out", str(tmp_path)])
    uids = np.load(tmp_path / "kept_uids.npy", allow_pickle=False)
    assert uids.dtype == np.dtype("u8,u8")
    assert (np.sort(uids) == uids).all()
    kept = table["uid"][table["fate"] == "kept"]
    assert {f"{high:016x}{low:016x}" for high, low in uids.tolist()} == {*kept.str.lower()}


def test_fiftyone_has_each_picture_with_its_label(cleaned, tmp_path):
    folder, table = cleaned
    main(["export", str(folder), "--to", "fiftyone", "--out", str(tmp_path), "--rows", "20"])
    labels = json.loads((tmp_path / "fiftyone/labels.json").read_text())["labels"]
    first = table[table["rank"] <= 20].set_index("id")
    assert {*labels} == {*first.index.astype(str)}
    assert {file.stem for file in (tmp_path / "fiftyone/data").iterdir()} == {*labels}
    for id, entry in labels.items():
        row = first.loc[int(id)]
        assert entry["label"] == (row["decision"] or row["fate"])
        assert entry["attributes"]["caption"] == row["caption"]
        assert entry["attributes"]["rank"] == row["rank"]
    for shard in ("00000.tar", "00001.tar"):
        with tarfile.open(folder / "shards" / shard) as tar:
            for id in first.index[first["shard"] == shard]:
                (file,) = (tmp_path / "fiftyone/data").glob(f"{id}.*")
                assert file.read_bytes() == tar.extractfile(first["key"][id] + file.suffix).read()


def test_pictures_of_a_table_stay_in_its_folder(tmp_path, cleaned):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images/a.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "secret.png")
    (tmp_path / "images/data.csv").write_text("filepath,title\na.png,a cat\n../secret.png,a dog\n")
    data = Files(str(tmp_path / "images/data.csv"), size=8, classes=["cat", "dog"])
    write_sources(SimpleNamespace(sources=[data], folders=[]), tmp_path)
    table = pd.DataFrame({"id": [0, 1], "key": ["a.png", "../secret.png"], "shard": None, "rank": [1, 2]})
    table.assign(status="scored").to_parquet(tmp_path / "scores.parquet")
    main(["export", str(tmp_path), "--to", "fiftyone"])
    assert [file.name for file in (tmp_path / "fiftyone/data").iterdir()] == ["0.png"]
    assert json.loads((tmp_path / "fiftyone/labels.json").read_text())["labels"]["0"]["label"] == "suspect"


def test_the_kept_keys_one_a_line(cleaned, tmp_path):
    folder, table = cleaned
    main(["export", str(folder), "--to", "keys", "--out", str(tmp_path)])
    assert (tmp_path / "kept_keys.txt").read_text().split() == table["key"][table["fate"] == "kept"].tolist()


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, arguments)])
    assert ended.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_what_cannot_be_exported_is_refused_in_one_line(cleaned, tmp_path, capsys):
    folder, table = cleaned
    assert "holds no scores.parquet" in refused(capsys, tmp_path, "--to", "keys")
    assert "--rows must be at least 2" in refused(capsys, folder, "--to", "fiftyone", "--rows", "0")
    (tmp_path / "run").mkdir()
    sources = json.loads((folder / "scan.json").read_text())
    for content, changed, to, message in (
        (sources, table.drop(columns="uid"), "datacomp", "has no column uid"),
        (sources, table.assign(uid="zz"), "datacomp", "53 kept samples have no uid of 32 hexadecimal digits"),
        (sources, table.assign(key="a"), "keys", "60 samples share their key"),
        (sources, table.assign(key=None), "keys", "53 kept samples have no key"),
        (sources, table.drop(columns="fate"), "keys", "is of a scan, which removes nothing"),
        ({**sources, "embeddings": ["gone"]}, table, "embedding-atlas", "embeddings in gone cannot be read"),
        ({**sources, "embeddings": []}, table, "embedding-atlas", "lack 58 of 58 samples"),
        ({**sources, "shards": ["http://a/0.tar"]}, table, "fiftyone", "read from local shards"),
        ({**sources, "shards": []}, table, "fiftyone", "have no picture files"),
        ([], table, "keys", "holds no scores of a scan"),
    ):
        (tmp_path / "run/scan.json").write_text(json.dumps(content))
        changed.to_parquet(tmp_path / "run/scores.parquet", index=False)
        (tmp_path / "run/kept.parquet").write_bytes((folder / "kept.parquet").read_bytes())
        assert message in refused(capsys, tmp_path / "run", "--to", to)
    main(["export", str(folder), "--to", "fiftyone", "--out", str(tmp_path), "--rows", "2"])
    assert "must be new or empty" in refused(capsys, folder, "--to", "fiftyone", "--out", tmp_path)


def test_a_uid_of_a_removed_sample_too_is_not_kept(cleaned, tmp_path):
    folder, table = cleaned
    for name in ("scan.json", "kept.parquet"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    kept, gone = (table.index[table["fate"] == fate][0] for fate in ("kept", "removed"))
    table = table.copy()
    table.loc[gone, "uid"] = table["uid"][kept].lower()
    table.to_parquet(tmp_path / "scores.parquet", index=False)
    main(["export", str(tmp_path), "--to", "datacomp"])
    assert len(np.load(tmp_path / "kept_uids.npy")) == 52
