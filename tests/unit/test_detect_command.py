"""`python -m detect`: embeddings in files -> a ranked table."""

import numpy as np
import pandas as pd
import pytest

from detect import DAO, SLOF
from detect.__main__ import main


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
        (str(words),): "words.npy",
        (str(tmp_path / "objects.npy"),): "objects.npy",
        (str(tmp_path / "nothing.npy"),): "nothing.npy",
        (str(tmp_path / "empty"),): "no .npy files",
        (str(tmp_path / "absent.npy"),): "absent.npy",
        (str(folder), "--out", "scores.txt"): "--out must end with",
        (str(folder), "--k", "500"): "k must lie in 1..239",
        (str(folder), "--full", "--reference", str(narrow)): "exclude each other",
    }
    for arguments, said in cases.items():
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
