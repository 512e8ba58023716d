"""The short run on a GPU, at tiny sizes on the CPU: its budget, its file, and a step that fails."""

import json

import pytest
import torch

from experiments.bench import __main__ as bench
from experiments.bench import gpu_run, gpu_search
from experiments.bench.report import Check, Note, Ratio

STEPS = {step.name: step for step in gpu_run.STEPS}


def _rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]


SLOW = ("training steps against open_clip's", "profiles of 250,000 rows", "decoding JPEG files in batches")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in STEPS])
def test_every_step_runs_on_tiny_data(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("triton")
    monkeypatch.setattr(gpu_run, "STEPS", [STEPS[name]])
    monkeypatch.setattr(gpu_run.os, "cpu_count", lambda: 1)
    assert gpu_run.run(1e9, tmp_path, gpu_run.TINY) == 0
    rows = _rows(tmp_path)
    assert {row["step"] for row in rows} == {name}
    assert all(row["passed"] for row in rows if row["kind"] == "Check")
    assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1


def test_a_step_that_fails_costs_no_other_and_fails_the_command(tmp_path, monkeypatch):
    def fails(sizes):
        yield Ratio("before", 1.0)
        raise RuntimeError("out of memory")

    steps = [
        gpu_run.Step("first", 1, fails),
        gpu_run.Step("too long", 1e6, fails),
        gpu_run.Step("second", 1, lambda sizes: iter([Check("two and two", False, "5")])),
    ]
    monkeypatch.setattr(gpu_run, "STEPS", steps)
    assert gpu_run.run(60, tmp_path, gpu_run.TINY) == 2
    assert [(row["step"], row["what"]) for row in _rows(tmp_path)] == [
        ("first", "before"),
        ("first", "the step ends well"),
        ("too long", "left out"),
        ("second", "two and two"),
    ]
    assert "RuntimeError: out of memory" in _rows(tmp_path)[1]["found"]
    monkeypatch.setattr(bench, "_set_threads", lambda threads: None)
    monkeypatch.setattr(bench, "_graphics", lambda: "a GPU")
    with pytest.raises(SystemExit, match="1"):
        bench.main(["gpu", "--budget", "1", "--out", str(tmp_path / "again")])
    assert len(_rows(tmp_path / "again")) == 4


@pytest.mark.parametrize(
    "arguments", [["gpu", "--budget", "0"], ["--budget", "3"], ["knn", "gpu", "--budget", "3"]]
)
def test_a_budget_without_sense_is_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        bench.main(arguments)
    assert "--budget needs one of the sections gpu, growth, peers alone, and minutes" in capsys.readouterr().err


def test_both_ways_of_searching_are_chosen(monkeypatch):
    from detect.search import candidates

    monkeypatch.setattr(candidates, "_working_kernels", lambda device: "kernels")
    found = {}
    for name in gpu_search.WAYS:
        with gpu_search._way(name) as said:
            found[name] = candidates.kernels(torch.device("cuda:0"))
            candidates.log.debug("a word")
        assert said == ["a word"]
    assert found == {"tiles by torch": None, "tiles by our kernels": "kernels"}


def test_a_note_is_a_line():
    assert str(Note("a kernel", "3 ms")).split() == ["a", "kernel", "3", "ms"]
