"""`python -m detect`: embeddings in files -> a ranked table."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from detect import DAO, SLOF, Multiscale, Pursuit
from detect.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    """12 parts of a tight cloud; row 3 of part 10 lies apart."""
    rng = np.random.default_rng(0)
    parts = tmp_path / "img_emb"
    parts.mkdir()
    for number in range(12):
        x = (np.eye(1, 8) + 0.05 * rng.standard_normal((20, 8))).astype(np.float16)
        if number == 10:
            x[3] = -x[3]
        np.save(parts / f"img_emb_{number}.npy", x)
    return parts


def whole(folder):
    return np.concatenate([np.load(folder / f"img_emb_{i}.npy") for i in range(12)]).astype(np.float32)


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_the_odd_row_comes_first_and_scores_are_the_detectors_own(folder, tmp_path, name, capsys):
    out = tmp_path / "new" / name
    arguments = [str(folder), "--out", str(out), "--detectors", "slof", "dao", "--k", "5", "--batch-size", "80"]
    assert main([*arguments, "--raw"]) == 0
    table = pd.read_csv(out) if name.endswith("csv") else pd.read_parquet(out)
    first = table.loc[table["rank"].idxmin()]
    assert first["file"].endswith("img_emb_10.npy")
    assert first["row"] == 3
    assert sorted(table["rank"]) == list(range(1, 241))
    for column, detector in (("slof", SLOF), ("dao", DAO)):
        expected = detector(k=5, scope="batch", batch_size=80).score(whole(folder))
        np.testing.assert_allclose(table[column], expected, rtol=1e-6)
    assert "240 rows" in capsys.readouterr().out


def test_pursuit_takes_its_neighbourhoods_from_the_batch(folder, tmp_path):
    out = tmp_path / "scores.csv"
    assert (
        main([str(folder), "--out", str(out), "--detectors", "pursuit", "multiscale", "--batch-size", "128"]) == 0
    )
    for name, kind in (("pursuit", Pursuit), ("multiscale", Multiscale)):
        made = kind(k=16, narrow=2, scope="batch", batch_size=128, normalise=True)
        np.testing.assert_allclose(pd.read_csv(out)[name], made.score(whole(folder)), rtol=1e-6)


def test_against_a_reference_and_among_all(folder, tmp_path):
    clean = tmp_path / "clean.npy"
    np.save(clean, whole(folder)[:100])
    asked = str(folder / "img_emb_10.npy")
    main([asked, "--reference", str(clean), "--out", str(tmp_path / "a.csv"), "--detectors", "slof", "--raw"])
    expected = SLOF(k=16, reference_set=np.load(clean)).score(np.load(asked).astype(np.float32))
    np.testing.assert_allclose(pd.read_csv(tmp_path / "a.csv")["slof"], expected, rtol=1e-6)
    main([str(folder), "--full", "--out", str(tmp_path / "b.csv"), "--detectors", "slof", "forest"])
    expected = SLOF(k=16, normalise=True).score(whole(folder))
    np.testing.assert_allclose(pd.read_csv(tmp_path / "b.csv")["slof"], expected, rtol=1e-6)


def test_bad_input_is_named(folder, tmp_path, capsys):
    flat, narrow, words = (tmp_path / f"{name}.npy" for name in ("flat", "narrow", "words"))
    np.save(flat, np.zeros(5))
    np.save(narrow, np.zeros((30, 4), np.float32))
    words.write_bytes(b"not numpy")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.npy").touch()
    cases = {
        (str(flat),): "(n, d) array of floats",
        (str(folder), str(narrow)): "equally wide",
        (str(words),): "words.npy is no .npy file of numbers: it begins with something else",
        (str(tmp_path / "objects.npy"),): "objects.npy",
        (str(tmp_path / "nothing.npy"),): "nothing.npy",
        (str(tmp_path / "empty"),): "no .npy files",
        (str(tmp_path / "absent.npy"),): "absent.npy",
        (str(folder), "--out", "scores.txt"): "--out must end with",
        (str(folder), "--k", "500"): "k must lie in 1..239",
        (str(folder), "--full", "--reference", str(narrow)): "exclude each other",
        (str(folder), "--reference", str(narrow)): "--reference has 4 columns, the files 8",
        (str(folder), "--reference", str(folder), "--detectors", "forest"): "leave out forest",
        (str(folder), "--top", "0"): "--top must be at least 1, got 0",
        (str(folder), "--seed", "-1"): "--seed must be at least 0, got -1",
        (str(folder), "--seed", "4294967296"): "--seed must be at most 4294967295, got 4294967296",
        (str(folder), "--k", "0"): "k must be at least",
        (str(folder), "--k", "10000000000000"): "k must lie in 1..239",
        (str(folder), "--batch-size", "1"): "batch_size must be at least 2, got 1",
    }
    for arguments, said in cases.items():
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        _assert_one_line(capsys, said)


def _assert_one_line(capsys, said):
    """The usage, then the one line."""
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("python -m detect: error: ")
    assert said in last


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.zeros((30, 0), np.float32), "at least one column, got shape (30, 0)"),
        (np.zeros((0, 8), np.float32), "no rows in"),
        (np.full((30, 8), 1 + 2j), "floats or integers, got complex128"),
        (np.full((30, 8), True), "floats or integers, got bool"),
        (np.zeros((30, 8), [("a", "f4")]), "floats or integers"),
        (np.zeros((2, 30, 8), np.float32), "floats or integers, got float32 (2, 30, 8)"),
        (np.ones((30, 8), np.float32), "gives all rows the same score"),
        (np.zeros((30, 8), np.float32), "gives all rows the same score"),
        (
            np.full((30, 8), 1e300),
            "x.npy holds NaN, infinite or too large values in 30 of 30 rows: 0, 1, 2, 3, 4, ...",
        ),
    ],
)
def test_arrays_that_cannot_be_ranked(array, said, tmp_path, capsys):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "x.npy"), "--out", str(tmp_path / "scores.csv")])
    assert stop.value.code == 2
    _assert_one_line(capsys, said)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.npy"]


def test_archives_and_cut_files_are_named_as_what_they_are(folder, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", images=np.zeros((30, 8)), texts=np.zeros(3))
    (tmp_path / "cut.npy").write_bytes((folder / "img_emb_0.npy").read_bytes()[:200])
    for name, said in (
        ("x.npz", "an .npz archive, which holds images, texts"),
        ("cut.npy", "cut short, at 200 bytes"),
    ):
        with pytest.raises(SystemExit):
            main([str(tmp_path / name)])
        _assert_one_line(capsys, said)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["files", "reference"])
def test_rows_that_hold_no_numbers_are_named_by_file_and_row(broken, where, folder, tmp_path, capsys):
    x = np.load(folder / "img_emb_10.npy")
    x[3, 2] = x[17, 0] = broken
    file = folder / "img_emb_10.npy" if where == "files" else tmp_path / "trusted.npy"
    np.save(file, x)
    with pytest.raises(SystemExit):
        main([str(folder), *(["--reference", str(file)] if where == "reference" else [])])
    _assert_one_line(capsys, f"{file} holds NaN, infinite or too large values in 2 of 20 rows: 3, 17")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, ">f4", np.float64])
def test_quantised_embeddings_and_other_types_are_ranked(dtype, tmp_path):
    x = np.random.default_rng(0).integers(0, 100, (60, 8)).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    assert main([str(tmp_path / "x.npy"), "--out", str(tmp_path / "s.csv"), "--detectors", "slof", "--raw"]) == 0
    expected = SLOF(k=16, scope="batch").score(x.astype(np.float32))
    np.testing.assert_allclose(pd.read_csv(tmp_path / "s.csv")["slof"], expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e20, 1e-25, 1e37, 1e-30])
def test_the_length_of_rows_does_not_matter_however_large_or_small(scale, folder, tmp_path):
    x = whole(folder)
    for name, rows in (("plain", x), ("scaled", (x * np.float32(scale)).astype(np.float32))):
        np.save(tmp_path / f"{name}.npy", rows)
        main([str(tmp_path / f"{name}.npy"), "--out", str(tmp_path / f"{name}.csv")])
    plain, scaled = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("plain", "scaled"))
    np.testing.assert_allclose(plain[["slof", "lof", "dao"]], scaled[["slof", "lof", "dao"]], rtol=2e-4)


@pytest.mark.parametrize("scale", [1e25, 1e-30])
def test_raw_distances_that_float32_does_not_hold_are_refused(scale, folder, tmp_path, capsys):
    np.save(tmp_path / "x.npy", (whole(folder) * np.float32(scale)).astype(np.float32))
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "x.npy"), "--raw", "--detectors", "kdist", "--out", str(tmp_path / "s.csv")])
    assert stop.value.code == 2
    _assert_one_line(capsys, "too long or short for float32 (--raw)")


@pytest.mark.parametrize("device", ["cuda:7", "nonsense", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_before_the_files_are_read(device, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "absent.npy"), "--device", device])
    assert stop.value.code == 2
    _assert_one_line(capsys, f"--device={device} cannot be used")


def test_a_place_that_cannot_be_written_is_refused_before_the_search(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("detect.__main__.find_neighbours", lambda *_: pytest.fail("it searched"))
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    for out, said in (
        (tmp_path / "file" / "s.csv", "cannot be written"),
        (tmp_path / "folder.csv", "is a folder"),
        ("/proc/nowhere/s.csv", "cannot be written"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([str(folder), "--out", str(out)])
        assert stop.value.code == 2
        _assert_one_line(capsys, said)
    monkeypatch.setattr("detect.__main__.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        main([str(folder), "--out", str(tmp_path / "s.parquet")])
    _assert_one_line(capsys, "needs the package pyarrow")


def test_an_earlier_table_is_kept_until_the_new_one_is_whole(folder, tmp_path):
    out = tmp_path / "s.csv"
    out.write_text("earlier")
    with pytest.raises(SystemExit):
        main([str(folder), "--k", "500", "--out", str(out)])
    assert out.read_text() == "earlier"
    assert main([str(folder), "--out", str(out)]) == 0
    assert len(pd.read_csv(out)) == 240


def test_hidden_files_of_a_folder_are_no_embeddings(folder, tmp_path):
    (folder / "._img_emb_0.npy").write_bytes(b"Mac OS X")
    (folder / "img_emb_\u00b2.npy").write_bytes((folder / "img_emb_0.npy").read_bytes())
    assert main([str(folder), "--out", str(tmp_path / "s.csv")]) == 0
    assert len(pd.read_csv(tmp_path / "s.csv")) == 260


@pytest.mark.parametrize("name", ["=1+1.npy", "+x.npy", "-x.npy", "@x.npy", "\t=x.npy", "\uff1dx.npy"])
def test_file_names_are_no_formulas(name, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save(name, whole(folder))
    assert main(["--out", "s.csv", "--", name]) == 0
    first = pd.read_csv("s.csv")["file"][0]
    assert first == "./" + name.replace("\t", "\\t")


def test_file_names_do_not_steer_the_terminal(folder, tmp_path, capsys):
    file = tmp_path / "a\x1b[2J\u202eb\nc.npy"
    np.save(file, whole(folder))
    assert main([str(file), "--out", str(tmp_path / "s.csv")]) == 0
    shown = r"a\x1b[2J\u202eb\nc.npy"
    assert pd.read_csv(tmp_path / "s.csv")["file"][0].endswith(shown)
    assert "\x1b" not in capsys.readouterr().out
    file.write_bytes(b"no array")
    with pytest.raises(SystemExit):
        main([str(file)])
    _assert_one_line(capsys, shown)


def test_a_console_without_the_letters_shows_marks(folder, tmp_path):
    file = tmp_path / "pictures-é-\udcff.npy"
    np.save(file, whole(folder))
    plain = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "detect", os.fsencode(file), "--out", str(tmp_path / "s.csv")]
    done = subprocess.run(command, env=os.environ | plain, cwd=ROOT, capture_output=True, timeout=120)
    assert (done.returncode, b"240 rows in" in done.stdout) == (0, True)
    assert b"Error" not in done.stderr


def parquet(vectors, file, kind="list", **columns):
    import pyarrow as pa
    from pyarrow.parquet import write_table

    flat = pa.array(vectors.ravel())
    made = (
        pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        if kind == "fixed"
        else pa.array([list(row) for row in vectors], pa.list_(pa.from_numpy_dtype(vectors.dtype)))
    )
    write_table(pa.table({**columns, "embedding": made}), file, row_group_size=64)


@pytest.fixture
def retrieval(folder):
    """clip-retrieval's metadata beside the embeddings."""
    (folder.parent / "metadata").mkdir()
    for number in range(12):
        keys = [f"{number:05d}{row:04d}" for row in range(20)]
        table = pd.DataFrame({"key": keys, "url": "https://a.example/b", "caption": "=cmd()", "NSFW": "UNLIKELY"})
        table.to_parquet(folder.parent / "metadata" / f"metadata_{number}.parquet", index=False, row_group_size=7)
    return folder.parent


@pytest.mark.parametrize("given", [".", "img_emb", "img_emb/img_emb_*.npy"])
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_clip_retrievals_metadata_are_joined(retrieval, given, ending, tmp_path):
    out = tmp_path / f"scores.{ending}"
    main([str(retrieval / given), "--k", "5", "--out", str(out)])
    table = pd.read_csv(out, dtype={"key": str}) if ending == "csv" else pd.read_parquet(out)
    assert list(table)[:5] == ["file", "row", "key", "url", "caption"]
    assert table["key"].tolist() == [f"{number:05d}{row:04d}" for number in range(12) for row in range(20)]
    assert table.loc[table["rank"].idxmin(), "key"] == "000100003"
    assert set(table["caption"]) == {"'=cmd()" if ending == "csv" else "=cmd()"}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda folder: (folder / "metadata_3.parquet").unlink(),
            "img_emb_3.npy has no metadata_<n>",
        ),
        (
            lambda folder: pd.DataFrame({"key": ["a"]}).to_parquet(folder / "metadata_3.parquet"),
            "must have a row for each of the 20 of",
        ),
    ],
)
def test_metadata_that_do_not_fit_are_refused(retrieval, spoil, said, tmp_path, capsys):
    spoil(retrieval / "metadata")
    with pytest.raises(SystemExit):
        main([str(retrieval), "--k", "5", "--out", str(tmp_path / "scores.csv")])
    _assert_one_line(capsys, said)


@pytest.mark.parametrize("kind", ["list", "fixed"])
def test_columns_of_vectors_in_parquet_give_the_same_scores(folder, kind, tmp_path):
    x = whole(folder)
    parquet(x[:150], tmp_path / "part_2.parquet", kind, key=[f"a{i}" for i in range(150)], width=[3] * 150)
    parquet(x[150:], tmp_path / "part_10.parquet", kind, key=[f"b{i}" for i in range(90)], width=[3] * 90)
    main([str(tmp_path / "part_*.parquet"), "--k", "5", "--raw", "--out", str(tmp_path / "a.csv")])
    main([str(folder), "--k", "5", "--raw", "--out", str(tmp_path / "b.csv")])
    ours, other = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv")
    pd.testing.assert_frame_equal(ours[["slof", "lof", "dao", "rank"]], other[["slof", "lof", "dao", "rank"]])
    assert ours["key"].tolist() == [*(f"a{i}" for i in range(150)), *(f"b{i}" for i in range(90))]


def test_more_rows_than_fit_are_scored_in_parts(folder, tmp_path):
    main([str(folder), "--k", "5", "--part-rows", "90", "--raw", "--out", str(tmp_path / "a.csv")])
    x = whole(folder)
    expected = [SLOF(k=5, scope="batch").score(x[begin : begin + 80]) for begin in (0, 80, 160)]
    table = pd.read_csv(tmp_path / "a.csv")
    np.testing.assert_allclose(table["slof"], np.concatenate(expected), rtol=1e-6)
    assert sorted(table["rank"]) == list(range(1, 241))


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lambda file: pd.DataFrame({"a": [1.0]}).to_parquet(file), [], "and there is none among a; choose with"),
        (
            lambda file: pd.DataFrame({"a": [[1.0]], "b": [[2]]}).to_parquet(file),
            [],
            "of a, b; choose with",
        ),
        (lambda file: pd.DataFrame({"a": [[1.0]]}).to_parquet(file), ["--column", "b"], "got no such column"),
        (
            lambda file: pd.DataFrame({"a": ["x"]}).to_parquet(file),
            ["--column", "a"],
            "column a of vectors, got ",
        ),
        (lambda file: pd.DataFrame({"a": [[1.0, 2], [3.0]]}).to_parquet(file), [], "2 numbers in a, but one has 1"),
        (lambda file: pd.DataFrame({"a": [[1.0, 2], None]}).to_parquet(file), [], "2 numbers in a, but one has 0"),
        (lambda file: pd.DataFrame({"a": [[1.0, None]] * 3}).to_parquet(file), [], "numbers"),
        (lambda file: pd.DataFrame({"a": [[], []]}).to_parquet(file), [], "x.parquet"),
        (
            lambda file: pd.DataFrame({"a": [[1.0, np.inf]] * 3}).to_parquet(file),
            [],
            "infinite or too large",
        ),
        (lambda file: file.write_text("no"), [], "is no Parquet file"),
        (lambda file: None, ["--part-rows", "1"], "--part-rows must be at least 2, got 1"),
    ],
)
def test_parquet_files_that_hold_no_vectors_are_refused(make, options, said, tmp_path, capsys):
    make(tmp_path / "x.parquet")
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "x.parquet"), *options, "--out", str(tmp_path / "scores.csv")])
    assert stop.value.code == 2
    _assert_one_line(capsys, said)


def test_a_pattern_without_files_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "*.npy")])
    _assert_one_line(capsys, "no file matches")


def test_pursuit_is_the_usual_detector_where_there_are_rows_enough(tmp_path, folder):
    x = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    asked = [str(tmp_path / "x.npy"), "--out", str(tmp_path / "a.csv")]
    for given, expected in (
        ([], {"pursuit"}),
        (["--part-rows", "200"], {"slof", "lof", "dao"}),  # fewer than its wide neighbourhood
        (["--k", "8"], {"slof", "lof", "dao"}),
        (["--reference", str(tmp_path / "x.npy")], {"slof", "lof", "dao"}),
    ):
        assert main([*asked, *given]) == 0
        assert {"pursuit", "slof", "lof", "dao"}.intersection(pd.read_csv(tmp_path / "a.csv")) == expected
