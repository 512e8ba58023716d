"""Parquet files written without their suspects: every value as it was, every count right, killed runs completed."""

import hashlib
import io
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments.data.cleaned_folder import CLEANED, UNFINISHED
from experiments.data.pairs import open_pairs
from experiments.data.row_copy import RowCopy
from experiments.data.row_data import Parquet
from experiments.data.unscored import find_unscored
from experiments.tasks.clean import _oddities
from experiments.tasks.cleaned_copy import KEPT, REMOVED, UNSCORED, write_copy
from experiments.tasks.cleaned_parquet import ParquetCopier

SETTINGS = {"task.remove": "count = 4"}
HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ROWS, GROUP = 20, 7


def picture(row):
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), (row % 250, 90, 40)).save(buffer, "PNG")
    return buffer.getvalue()


def table(rows, form="hf"):
    """With columns of many kinds beside the image and the caption, and metadata."""
    rows = list(rows)
    images = {
        "hf": lambda: pa.array([{"bytes": picture(row), "path": f"{row}.png"} for row in rows], HF),
        "hf_paths": lambda: pa.array([{"bytes": None, "path": f"images/{row}.png"} for row in rows], HF),
        "paths": lambda: pa.array([f"images/{row}.png" for row in rows]),
    }[form]()
    columns = {
        "image": images,
        "caption": pa.array([f"a picture of number {row}" for row in rows], pa.large_string()),
        "aesthetic": pa.array([float("nan") if row % 3 else row / 7 for row in rows], pa.float32()),
        "licence": pa.array([f"kind {row % 4}" for row in rows]).dictionary_encode(),
        "boxes": pa.array([[0.5, float("nan")] * (row % 3) if row % 5 else None for row in rows]),
        "taken": pa.array([row * 10**9 for row in rows], pa.timestamp("ns", tz="UTC")),
        "odd": pa.array([b"\xff%d" % row for row in rows]).view(pa.string()),  # not in UTF-8
    }
    made = pa.table(columns)
    field = made.schema.field("caption").with_metadata({"language": "en"})
    schema = made.schema.set(1, field).with_metadata({"huggingface": json.dumps({"info": {}}), "maker": "a\u00e9"})
    return made.cast(schema)


def export(folder, form="hf"):
    folder.mkdir(parents=True, exist_ok=True)
    if form != "hf":
        (folder / "images").mkdir()
        for row in range(3 * ROWS):
            (folder / f"images/{row}.png").write_bytes(picture(row))
    for number in range(3):
        rows = range(ROWS * number, ROWS * number + ROWS)
        pq.write_table(table(rows, form), folder / f"train-{number:05d}.parquet", row_group_size=GROUP)
    return folder


@pytest.fixture
def folder(tmp_path):
    return export(tmp_path / "in")


def parquet(path, **options):
    return Parquet(str(path), **{"size": 16, "holdout": 0.0, "max_damaged": 0.9, **options})


def scanned(data, stage, removed=(0, 7, 30, -1)):
    """What a scan would say: some samples go, the damaged ones have no score."""
    data.build(stage)
    members, _ = data.members(stage)
    scored = np.sort(open_pairs(stage).ids)
    unscored = find_unscored(data, stage, scored)
    found = pd.DataFrame({"id": members, "fate": KEPT, "status": "scored"}).set_index("id")
    found.loc[unscored.ids, "fate"], found.loc[unscored.ids, "status"] = UNSCORED, unscored.status
    found.loc[scored[list(removed)], "fate"] = REMOVED
    return found.reset_index()


def rewrite(data, fates, target, settings=SETTINGS, keep=False):
    return write_copy(ParquetCopier(data), fates, target, settings, keep)


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}


def places(data, fates, fate=KEPT):
    """File -> rows of a fate."""
    file, row = ParquetCopier(data).locate(fates.loc[fates["fate"] == fate, "id"].to_numpy())
    return {number: np.sort(row[file == number]).tolist() for number in range(3)}


def spoil(file, group, column):
    """Overwrite the pages of one column of a row group."""
    content = bytearray(file.read_bytes())
    chunk = pq.ParquetFile(file).metadata.row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)


def column_of(file, name):
    """Number of a leaf column."""
    schema = pq.ParquetFile(file).metadata.schema
    return next(number for number in range(len(schema)) if schema.column(number).path.startswith(name))


def test_suspects_go_and_every_other_value_stays(folder, tmp_path):
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    before = digests(folder)
    report = rewrite(data, fates, tmp_path / "new")
    assert before == digests(folder)
    for number, rows in places(data, fates).items():
        name = f"train-{number:05d}.parquet"
        old, new = pq.read_table(folder / name), pq.read_table(tmp_path / "new" / name)
        assert new.schema.equals(old.schema, check_metadata=True)
        assert new.schema.metadata == old.schema.metadata
        assert repr(new.drop_columns(["odd"]).to_pylist()) == repr(old.drop_columns(["odd"]).take(rows).to_pylist())
        assert new["odd"].equals(old["odd"].take(rows))
        assert report[name]["written"] == len(rows)
        sizes = [np.sum((np.array(rows) >= at) & (np.array(rows) < at + GROUP)) for at in range(0, ROWS, GROUP)]
        metadata = pq.read_metadata(tmp_path / "new" / name)
        assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == sizes
    manifest = json.loads((tmp_path / "new" / CLEANED).read_text())
    assert (manifest[KEPT], manifest[REMOVED], manifest["members"]) == (56, 4, 60)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {*before, CLEANED}
    assert _oddities(report) == []


def test_the_copy_is_read_as_the_kept_samples(folder, tmp_path):
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    rewrite(data, fates, tmp_path / "new")
    parquet(tmp_path / "new").build(tmp_path / "again")
    rows = [ROWS * number + row for number, kept in places(data, fates).items() for row in kept]
    assert sorted(open_pairs(tmp_path / "again").captions) == sorted(f"a picture of number {row}" for row in rows)


@pytest.mark.parametrize("keep", [False, True])
def test_a_broken_row_group_of_images_costs_its_own_rows(folder, tmp_path, keep):
    file = folder / "train-00001.parquet"
    spoil(file, 1, column_of(file, "image.bytes"))
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    assert fates["status"].value_counts()["broken row group"] == GROUP
    report = rewrite(data, fates, tmp_path / "new", keep=keep)
    kept = places(data, fates)[1]
    new = pq.read_table(tmp_path / "new" / file.name)
    assert new["caption"].to_pylist() == [f"a picture of number {ROWS + row}" for row in kept]
    assert report[file.name]["unreadable"] == (GROUP if keep else 0)
    assert report[file.name][UNSCORED] == {"broken row group": GROUP}
    assert bool(_oddities(report)) == keep


def test_a_broken_row_group_of_another_column_is_counted_and_said(folder, tmp_path):
    file = folder / "train-00001.parquet"
    spoil(file, 2, column_of(file, "taken"))
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage", removed=(0,))
    assert (fates["status"] == "scored").all()
    report = rewrite(data, fates, tmp_path / "new")
    rows = [row for row in places(data, fates)[1] if row < 2 * GROUP]
    lost = len(places(data, fates)[1]) - len(rows)
    assert 5 <= lost <= 6
    counts = report[file.name]
    assert (counts[KEPT], counts["written"], counts["unreadable"]) == (len(rows) + lost, len(rows), lost)
    assert pq.read_metadata(tmp_path / "new" / file.name).num_rows == len(rows)
    assert _oddities(report) == [
        f"{lost} samples to keep were not written: another column of their row group is broken"
    ]


def test_a_broken_file_is_named_and_not_written(folder, tmp_path):
    (folder / "train-00002.parquet").write_bytes(b"PAR1 no")
    data = parquet(folder)
    report = rewrite(data, scanned(data, tmp_path / "stage"), tmp_path / "new")
    assert report["train-00002.parquet"]["written"] == 0
    assert "damage" in report["train-00002.parquet"]
    assert not (tmp_path / "new/train-00002.parquet").exists()
    assert any("train-00002.parquet holds nothing that can be read" in text for text in _oddities(report))


def test_a_file_that_loses_all_its_rows_is_an_empty_one(folder, tmp_path):
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage", removed=())
    fates.loc[ParquetCopier(data).locate(fates["id"].to_numpy())[0] == 1, "fate"] = REMOVED
    report = rewrite(data, fates, tmp_path / "new")
    new = pq.read_table(tmp_path / "new/train-00001.parquet")
    assert len(new) == 0 == report["train-00001.parquet"]["written"]
    assert new.schema.equals(pq.read_schema(folder / "train-00001.parquet"), check_metadata=True)
    parquet(tmp_path / "new").build(tmp_path / "again")
    assert len(open_pairs(tmp_path / "again")) == 2 * ROWS


@pytest.mark.parametrize("form", ["paths", "hf_paths"])
def test_images_that_are_named_by_path_are_read_with_the_old_folder_as_root(tmp_path, form):
    folder = export(tmp_path / "in", form)
    data = parquet(folder)
    report = rewrite(data, scanned(data, tmp_path / "stage"), tmp_path / "new")
    assert sum(counts["by_path"] for counts in report.values()) == 56
    assert "56 of the images written are paths" in _oddities(report)[0]
    parquet(tmp_path / "new", root=str(folder)).build(tmp_path / "again")
    assert len(open_pairs(tmp_path / "again")) == 56


def test_a_killed_clean_is_completed_and_its_folder_refused_until_then(folder, tmp_path, monkeypatch):
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    rewrite(data, fates, tmp_path / "whole")
    original, written = RowCopy.write, []

    def killed(self, target):
        if written:
            target.write_bytes(b"PAR1 half")
            raise KeyboardInterrupt
        written.append(target.name)
        original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(RowCopy, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            rewrite(data, fates, tmp_path / "new")
    assert (tmp_path / "new" / UNFINISHED).exists()
    with pytest.raises(ValueError, match=r"data\.path: .*new holds half-written cleaned shards"):
        parquet(tmp_path / "new")
    with monkeypatch.context() as patch:
        patch.setattr(RowCopy, "write", lambda self, file: (written.append(file.name), original(self, file)))
        rewrite(data, fates, tmp_path / "new")
        assert written == [f"train-{number:05d}.parquet.partial" for number in range(3)]
        rewrite(data, fates, tmp_path / "new")  # complete already
        assert len(written) == 3
    assert digests(tmp_path / "new") == digests(tmp_path / "whole")


def test_a_finished_file_that_has_changed_is_written_anew(folder, tmp_path):
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    rewrite(data, fates, tmp_path / "new")
    before = digests(tmp_path / "new")
    for change in (lambda made: made.slice(1), lambda made: made.replace_schema_metadata({"maker": "b"})):
        file = tmp_path / "new/train-00000.parquet"
        pq.write_table(change(pq.read_table(file)), file, row_group_size=GROUP)
        rewrite(data, fates, tmp_path / "new")
        assert digests(tmp_path / "new") == before


def test_what_was_not_written_as_it_should_be_is_refused(folder, tmp_path, monkeypatch):
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    rows = pq.read_table(folder / "train-00000.parquet")
    monkeypatch.setattr(RowCopy, "write", lambda self, target: pq.write_table(rows, target))
    with pytest.raises(RuntimeError, match=r"train-00000\.parquet: what was written is not the 1. rows to keep"):
        rewrite(data, fates, tmp_path / "new")
    assert not (tmp_path / "new/train-00000.parquet").exists()


def test_counts_that_do_not_come_out_are_refused(folder, tmp_path):
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    first = ParquetCopier(data).locate(fates["id"].to_numpy())[0] == 0
    with pytest.raises(RuntimeError, match=r"train-00000\.parquet: .* are not the 20"):
        rewrite(data, fates.drop(fates.index[first][0]), tmp_path / "new")


@pytest.mark.parametrize("content", ["a file", "the originals", "other settings", "other suspects"])
def test_a_folder_of_anything_else_is_refused(folder, tmp_path, content):
    data = parquet(folder)
    fates, target, settings = scanned(data, tmp_path / "stage"), tmp_path / "new", SETTINGS
    if content == "a file":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    elif content == "the originals":
        target = folder
    else:
        rewrite(data, fates, target)
        if content == "other settings":
            settings = {"task.remove": "share = 0.5"}
        else:
            fates = fates.assign(fate=KEPT)
    before = digests(target)
    with pytest.raises(ValueError, match=r"task\.write_shards"):
        rewrite(data, fates, target, settings)
    assert digests(target) == before


def test_an_arrow_file_is_refused(folder, tmp_path):
    rows = pq.read_table(folder / "train-00000.parquet", columns=["image", "caption"])
    with pa.ipc.new_file(folder / "train-00009.parquet", rows.schema) as stream:
        stream.write_table(rows)
    with pytest.raises(ValueError, match=r"copies Parquet files, but .*train-00009\.parquet is an Arrow file"):
        ParquetCopier(parquet(folder))


def test_row_groups_are_not_held_whole(folder, tmp_path, monkeypatch):
    """A group beyond the bound becomes several."""
    monkeypatch.setattr("experiments.data.row_copy._BYTES", 400)
    monkeypatch.setattr("experiments.data.row_copy._ROWS", 2)
    data = parquet(folder)
    fates = scanned(data, tmp_path / "stage")
    report = rewrite(data, fates, tmp_path / "new")
    assert sum(counts["written"] for counts in report.values()) == 56
    assert pq.read_metadata(tmp_path / "new/train-00000.parquet").num_row_groups > 3
