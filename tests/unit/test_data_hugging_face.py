"""Data sets of the `datasets` library: saved folders, splits, damage, hostile folders, names without a network."""

import importlib.util
import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from experiments.data import hugging_face
from experiments.data.damage import TooMuchDamage
from experiments.data.hugging_face import HuggingFace
from experiments.data.pairs import open_pairs
from experiments.data.provenance import origins

COLOURS = [(220, 20, 30), (20, 200, 40), (30, 40, 220)]
INSTALLED = importlib.util.find_spec("datasets") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="needs the extra hf")


def picture(row):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), COLOURS[row % 3]).save(buffer, "PNG")
    return buffer.getvalue()


def rows(n, begin=0):
    """A data set with an Image feature."""
    datasets = pytest.importorskip("datasets")
    images = [{"bytes": picture(row), "path": None} for row in range(begin, begin + n)]
    texts = [f"caption {row}" for row in range(begin, begin + n)]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": images, "text": texts}, features=features)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hf") / "saved"
    rows(30).save_to_disk(str(folder), num_shards=2)
    return folder


def hf(path, **options):
    return HuggingFace(str(path), **{"size": 16, "holdout": 0.0, **options})


@pytest.mark.parametrize(("storage", "workers"), [("array", 1), ("files", 2)])
def test_a_saved_folder_gives_its_rows(saved, tmp_path, storage, workers):
    data = hf(saved, storage=storage)
    data.build(tmp_path, workers)
    pairs = open_pairs(tmp_path)
    assert list(pairs.captions) == [f"caption {row}" for row in range(30)]
    assert pairs.images(np.arange(30))[:, 8, 8].tolist() == [list(COLOURS[row % 3]) for row in range(30)]
    assert pairs.images(np.array([29, 0]))[:, 8, 8].tolist() == [list(COLOURS[2]), list(COLOURS[0])]
    found = origins(data, np.asarray(pairs.ids))
    assert found["shard"] == ["data-00000-of-00002.arrow"] * 15 + ["data-00001-of-00002.arrow"] * 15
    assert found["key"] == [str(row) for row in [*range(15), *range(15)]]


@needs_library
def test_a_split_is_train_or_the_one_named(tmp_path):
    import datasets

    splits = {"train": rows(4), "test": rows(3, 4), "other": rows(2, 7)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "in"))
    for options, n in (({}, 4), ({"split": "test"}, 3)):
        hf(tmp_path / "in", **options).build(tmp_path / f"built{n}")
        assert len(open_pairs(tmp_path / f"built{n}")) == n
    with pytest.raises(ValueError, match=r"data.split=dev is no split of .*; its splits: train, test, other"):
        hf(tmp_path / "in", split="dev")
    with pytest.raises(ValueError, match="holds one split only"):
        hf(tmp_path / "in/train", split="train")


@needs_library
def test_paths_in_rows_stay_in_the_folder(tmp_path):
    (tmp_path / "outside.png").write_bytes(picture(0))
    cells = [{"bytes": picture(0), "path": None}, {"bytes": None, "path": str(tmp_path / "outside.png")}]
    cells += [{"bytes": None, "path": "inside.png"}, {"bytes": None, "path": "http://127.0.0.1/a.png"}]
    rows(4).save_to_disk(str(tmp_path / "in"))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(cells, kind), "text": ["a"] * 4})  # the library would store the files
    file = str(tmp_path / "in/data-00000-of-00001.arrow")
    with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    (tmp_path / "in/inside.png").write_bytes(picture(1))
    with pytest.raises(TooMuchDamage, match="2 of 4"):
        hf(tmp_path / "in").build(tmp_path / "built")
    hf(tmp_path / "in", max_damaged=0.5).build(tmp_path / "built")
    assert json.loads((tmp_path / "built/damage.json").read_text())["damage"] == {
        "outside the folder": 1,
        "missing file": 1,
    }


@needs_library
@pytest.mark.parametrize("name", ["../other.arrow", "/etc/passwd", "a/b.arrow", 3])
def test_a_folder_that_lists_files_outside_of_it_is_refused(saved, tmp_path, name):
    copy = shutil.copytree(saved, tmp_path / "in")
    state = json.loads((copy / "state.json").read_text())
    state["_data_files"][0]["filename"] = name
    (copy / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"state.json names .*, which is not in the folder"):
        hf(copy)


@needs_library
def test_a_link_out_of_the_folder_is_followed_on_request_only(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "in")
    file = copy / "data-00000-of-00002.arrow"
    file.unlink()
    file.symlink_to(saved / file.name)
    with pytest.raises(ValueError, match=r"is a link out of the folder; data.follow_links=true"):
        hf(copy)
    assert len(hf(copy, follow_links=True).files()) == 2


@needs_library
def test_broken_folders_are_refused_in_one_line(saved, tmp_path):
    copy = shutil.copytree(saved, tmp_path / "in")
    file = copy / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"data.path=.* cannot be loaded: ") as refused:
        hf(copy)
    assert "\n" not in str(refused.value)
    (copy / "state.json").write_text("[")
    with pytest.raises(ValueError, match=r"state.json cannot be read"):
        hf(copy)
    (copy / "state.json").unlink()
    with pytest.raises(ValueError, match=r"not a folder that save_to_disk wrote .*data=parquet"):
        hf(copy)


@needs_library
def test_a_name_without_a_network_is_one_line(monkeypatch):
    monkeypatch.setattr(hugging_face, "_reachable", lambda: False)
    with pytest.raises(ValueError, match="nobody/nothing cannot be loaded: the Hub cannot be reached") as refused:
        hf("nobody/nothing")
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="neither a folder nor the name of a data set"):
        hf("no/such/folder")


@needs_library
def test_old_versions_run_code_of_data_sets_and_are_refused(saved, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "__version__", "2.19.1")
    hugging_face._saved.cache_clear()
    with pytest.raises(ValueError, match=r"needs version 4 of datasets, .* 2.19.1 is installed"):
        hf(saved)


def test_the_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(hugging_face, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"data=hf needs the package datasets; install it with: .*'.\[hf\]'"):
        hf(tmp_path)
