"""The benchmark's own checks, run on the CPU; and how the command ends."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detect import Embeddings, NeighbourSearch, find_neighbours
from experiments.bench import __main__ as bench
from experiments.bench import gpu as bench_gpu
from experiments.bench import processes as bench_processes
from experiments.bench import report
from experiments.bench import training as bench_training
from experiments.data.jpeg_batches import JPEGDecoder
from experiments.data.pairs import open_pairs
from experiments.data.shapes.export import Export
from experiments.data.shards import Shards


def test_neighbour_checks_pass():
    checks = list(bench_gpu.neighbour_checks(600, 64, k=9, batch=256))
    assert len(checks) == 3 + 4 + 1
    assert [str(check) for check in checks if not check.passed] == []


@pytest.mark.parametrize("fault", ["another row", "itself", "a distance"])
def test_a_wrong_table_fails(fault):
    x = report.clustered(300, 32)
    table = find_neighbours(Embeddings.of(x), 5, NeighbourSearch())
    true, rows = bench_gpu.brute_force(x, 5)
    assert np.array_equal(rows, table.indices)
    assert bench_gpu._same_table("right", table, x, true).passed
    distances, indices = table.distances.copy(), table.indices.copy()
    if fault == "a distance":
        distances[7, 2] *= 1.001
    else:
        indices[7, 2] = 7 if fault == "itself" else np.setdiff1d(np.arange(300), [7, *indices[7]])[0]
    wrong = bench_gpu._same_table("wrong", replace(table, distances=distances, indices=indices), x, true)
    assert not wrong.passed
    assert "FAILED" in str(wrong)


@pytest.mark.slow
def test_model_checks_pass():
    checks = list(bench_gpu.model_checks("cpu", 128))
    assert len(checks) == 2 + 1 + 2 + 2
    assert [str(check) for check in checks if not check.passed] == []


@pytest.mark.slow
def test_process_checks_pass_and_tell_why_they_cannot(monkeypatch):
    checks = list(bench_processes.process_checks("cpu", 2, 129))
    assert [check.what.partition(": ")[2] for check in checks] == [
        "each sample's loss in the first step (float32)",
        "embeddings of the same model",
    ]
    assert [str(check) for check in checks if not check.passed] == []
    monkeypatch.setattr(bench_processes.sys, "executable", "/bin/false")
    (check,) = bench_processes.process_checks("cpu", 2, 128)
    assert not check.passed


def test_rates_are_measured():
    rates = bench_gpu.product_rates("cpu", 64)
    assert set(rates) == {"bfloat16", "TF32", "float32"}
    assert all(rate.value > 0 for rate in rates.values())
    for scope in ("full", "batch"):
        found = list(bench_gpu.search_rate(scope, 500, 16, 5, 1.0, batch=100))
        assert all(ratio.value > 0 for ratio in found)
    (rate,) = bench_gpu.embedding_rate("cpu", "ViT-S-32-alt", 32, 4, batch=2)
    assert rate.unit == "/s"


def test_batch_decoding_is_checked_and_measured(tmp_path, monkeypatch):
    Export(tmp_path / "shards", pairs=12, shards=2, size=64).write()
    Shards(str(tmp_path / "shards"), size=32, holdout=0).build(tmp_path / "data")
    shards = open_pairs(tmp_path / "data")
    check, rate = bench_training.batch_decoding(shards, "cpu", 8, 2)
    assert check.passed
    assert rate.value > 0
    decoded = JPEGDecoder.canvases
    monkeypatch.setattr(JPEGDecoder, "canvases", lambda *given: (255 - decoded(*given)[0], []))
    check, _ = bench_training.batch_decoding(shards, "cpu", 8, 2)
    assert not check.passed


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_check_fails_the_command(passed, monkeypatch, capsys):
    def heading(quick):
        """A heading"""
        yield report.Check("two and two", passed, "4")

    monkeypatch.setattr(bench, "_set_threads", lambda threads: None)
    monkeypatch.setitem(bench.SECTIONS, "sums", heading)
    if passed:
        bench.main(["sums"])
    else:
        with pytest.raises(SystemExit, match="1"):
            bench.main(["sums"])
    printed = capsys.readouterr().out
    assert "sums: A heading" in printed
    assert ("1 checks FAILED" in printed) is not passed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_section_needs_one(monkeypatch, capsys):
    monkeypatch.setattr(bench, "_set_threads", lambda threads: None)
    with pytest.raises(SystemExit, match="2"):
        bench.main(["gpu"])
    assert "section gpu needs a GPU, and torch sees none here" in capsys.readouterr().err
    monkeypatch.setattr(bench, "SECTIONS", {"gpu": bench.SECTIONS["gpu"]})
    bench.main([])
    assert "gpu: left out, as torch sees no GPU here" in capsys.readouterr().out
