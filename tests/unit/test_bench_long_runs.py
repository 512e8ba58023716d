"""The runs that compare with other packages and show growth, at tiny sizes."""

import csv

import numpy as np
import pytest

from experiments.bench import __main__ as bench
from experiments.bench import growth, peer_sides, peers, step
from experiments.bench.growth_stages import STAGES, Row, Simulated
from experiments.bench.report import Check, Note, Ratio, clustered


def _rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(peers, "QUICK_ROWS", (100, 260))
    monkeypatch.setattr(peers, "QUICK_WIDTHS", (8,))
    monkeypatch.setattr(peers, "BATCH", 120)
    monkeypatch.setattr(peers, "AGAIN", 0.0)
    monkeypatch.setattr(bench, "_set_threads", lambda threads: None)


def test_peers_are_measured_and_agree(tiny, tmp_path, capsys):
    bench.main(["peers", "--quick", "--out", str(tmp_path)])
    rows = _rows(tmp_path / "peers.csv")
    assert {row["detector"] for row in rows} == {"LOF", "k-dist", "SLOF", "DAO"}
    assert {(row["scope"], row["rows"]) for row in rows} == {("full", "100"), ("full", "260"), ("batch", "260")}
    assert {"ours", "scikit-learn"} <= {row["side"] for row in rows}
    assert max(float(row["off"]) for row in rows if row["detector"] != "DAO") < 1e-3
    table = (tmp_path / "peers.md").read_text().splitlines()
    assert len(table) == 2 + 4 * 2 * 3 + 2
    assert "of 24 cells" in table[-1]
    assert (tmp_path / "peers.png").stat().st_size > 1000
    assert "written:" in capsys.readouterr().out


def test_a_peer_that_is_not_installed_is_left_out_and_named(tiny, tmp_path, monkeypatch, capsys):
    real = peer_sides.find_spec
    monkeypatch.setattr(peer_sides, "find_spec", lambda name: None if name == "faiss" else real(name))
    bench.main(["peers", "--quick", "--out", str(tmp_path)])
    assert "faiss" not in {row["side"] for row in _rows(tmp_path / "peers.csv")}
    assert "left out: it is not installed (pip install faiss-cpu)" in capsys.readouterr().out


def test_cheap_cells_of_the_first_width_come_first():
    found = peers.cells(peers.ROWS, peers.WIDTHS)
    assert len(set(found)) == len(found)
    assert found[0].width == 512
    full = [cell for cell in found if cell.scope == "full" and cell.detector == "LOF"]
    at_first_width = [cell.rows for cell in full if cell.width == 512]
    assert at_first_width == sorted(at_first_width)
    assert full.index(next(cell for cell in full if cell.rows == 8_192 and cell.width == 512)) < full.index(
        next(cell for cell in full if cell.rows == 8_192 and cell.width == 1024)
    )
    assert max(cell.rows for cell in found if cell.detector == "DAO") == 20_000


def test_what_does_not_fit_into_the_budget_is_left_out(tiny):
    assert [type(line) for line in peers.measure(peers.cells((100,), (8,)), -1.0)] == [Note]
    big = [peers.Cell("LOF", "full", "noise", 10**7, 1024)]
    lines = list(peers.measure(big, float("inf")))
    assert lines
    assert all("left out: it would take about" in str(line) for line in lines)


def test_batches_of_other_packages_hold_every_row_once():
    seen = []

    def score(x):
        seen.append(len(x))
        return x[:, 0].astype(float)

    x = np.arange(250, dtype=np.float32)[:, None]
    assert np.array_equal(peer_sides._by_batches(score)(x, 100), x[:, 0])
    assert seen == [100, 100, 100]


def test_the_formulas_are_ours():
    x = clustered(300, 16)
    for detector in ("SLOF", "DAO", "LOF", "k-dist"):
        theirs = peer_sides._from_table(lambda x: peer_sides._scikit_learn("sklearn", x), detector)(x, None)
        np.testing.assert_allclose(theirs, peer_sides._ours(detector)(x, None), rtol=1e-3, atol=1e-4)


def test_growth_of_every_stage_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "QUICK_ROWS", (200, 400))
    monkeypatch.setattr(growth, "WARM_UP", 200)
    monkeypatch.setattr(growth, "STAGES", [stage for stage in STAGES if stage.name[:5] not in ("train", "embed")])
    monkeypatch.setattr(bench, "_set_threads", lambda threads: None)
    bench.main(["growth", "--quick", "--out", str(tmp_path)])
    rows = _rows(tmp_path / "growth.csv")
    assert [row["stage"] for row in rows] == 2 * [stage.name for stage in growth.STAGES]
    assert len((tmp_path / "growth.md").read_text().splitlines()) == 2 + len(growth.STAGES)
    assert (tmp_path / "growth-seconds.png").stat().st_size > 1000
    assert "growth.csv" in capsys.readouterr().out


@pytest.mark.slow
def test_training_and_embedding_grow_as_well(tmp_path):
    given = Simulated(150, tmp_path)
    for stage in STAGES:
        if stage.name[:5] in ("train", "embed"):
            assert stage.measure(given).seconds > 0


def test_a_stage_that_would_take_too_long_is_left_out(monkeypatch):
    class Slow:
        name, power = "slow", 2

        def measure(self, given):
            return Row("slow", given.n, 30.0, 30.0, 1.0)

    monkeypatch.setattr(growth, "STAGES", [Slow()])
    first, second = growth.measure((100, 1000), float("inf"))
    assert isinstance(first, Row)
    assert "left out: it would take about 3,000 s" in str(second)
    assert growth._power([Row("a", 100, 1.0, 1.0, 1.0), Row("a", 1000, 100.0, 1.0, 1.0)]) == "n^2.00"


@pytest.mark.parametrize("arguments", [["peers", "knn"], ["growth", "peers"]])
def test_long_runs_are_named_alone(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(arguments)
    assert "takes hours: name it alone" in capsys.readouterr().err


@pytest.mark.slow
def test_the_training_steps_are_compared():
    lines = list(step.attention_ratio(2, batch=4))
    if isinstance(lines[0], Note):
        pytest.skip("no bfloat16 on this processor")
    assert [type(line) for line in lines] == [Ratio, Ratio, Check]
    assert lines[-1].passed
