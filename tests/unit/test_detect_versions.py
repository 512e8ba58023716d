"""What makes a stored score or neighbour table stale, and what does not."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import detect
from detect import DAO, LID, LOF, SLOF, Detector, Embeddings, Flicker, LocalDetector, NeighbourSearch, Tandem
from experiments.pipeline.study import Study
from experiments.runtime.store import Stage, Store

MODULES = sorted(path.stem for path in Path(detect.__file__).parent.glob("[!_]*.py"))


def detectors_in(name: str) -> tuple[list[type[Detector]], list[type[Detector]]]:
    """The detectors that a module defines, and those that it imports."""
    module = import_module(f"detect.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Detector) and value not in (Detector, LocalDetector)
    ]
    own = [kind for kind in found if kind.__module__ == module.__name__]
    return own, [kind for kind in found if kind not in own]


@pytest.mark.parametrize("name", MODULES)
def test_a_detector_declares_every_detector_that_its_module_uses(name):
    own, used = detectors_in(name)
    for kind in own:
        assert set(used) == set(kind.built_on), f"{kind.__name__}.built_on must name what {name}.py imports"


def score_key(detector: Detector) -> str:
    """Key of a detector's stored scores, as the study forms it."""
    study = SimpleNamespace(
        variant=lambda variant: detector,
        embed_entry=SimpleNamespace(key="embed"),
        views_stage=SimpleNamespace(key="views"),
        _resolved=lambda group: {"it": {"k": 16}},
    )
    return Study.score_stage(study, ("it", True)).key


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (LID, Tandem),
        (LOF, Tandem),
        (Flicker, Tandem),
        (LID, DAO),
        (detect.KDistance, LOF),
        (detect.KDistance, Tandem),
        (detect.KDistance, SLOF),
        (detect.CLIPScore, detect.SafeCLIP),
        (detect.CLIPScore, Tandem),
        (LID, LID),
    ],
)
def test_raising_the_version_of_a_part_makes_stored_scores_stale(monkeypatch, part, whole):
    before = score_key(whole())
    assert before == score_key(whole())
    monkeypatch.setattr(part, "version", part.version + 1)
    assert score_key(whole()) != before


def test_raising_the_version_of_another_detector_does_not(monkeypatch):
    before = score_key(SLOF())
    monkeypatch.setattr(LID, "version", 99)
    assert score_key(SLOF()) == before


def test_raising_the_version_of_the_search_makes_all_local_scores_stale(monkeypatch):
    before, other = score_key(SLOF()), score_key(detect.CLIPScore())
    monkeypatch.setattr("detect.base.VERSION", 99)
    assert score_key(SLOF()) != before
    assert score_key(detect.CLIPScore()) == other


def test_working_memory_is_no_part_of_a_search():
    little, much = NeighbourSearch(memory_mb=1), NeighbourSearch(memory_mb=999)
    assert little == much
    assert hash(little) == hash(much)
    assert little.identity == much.identity


@pytest.mark.parametrize(
    "change",
    [
        {"scope": "batch"},
        {"batch_size": 7},
        {"modality": "joint"},
        {"normalise": True},
        {"backend": "hnsw"},
        {"seed": 1},
    ],
)
def test_everything_else_is(change):
    assert NeighbourSearch(**change) != NeighbourSearch()
    assert NeighbourSearch(**change).identity != NeighbourSearch().identity


@pytest.mark.parametrize(
    ("backend", "width", "k", "serves"),
    [
        ("auto", 64, 16, True),
        ("torch", 16, 16, True),
        ("faiss", 16, 17, False),
        ("hnsw", 64, 16, False),
        ("ivf", 16, 16, True),
    ],
)
def test_a_wider_table_serves_unless_it_is_approximate(backend, width, k, serves):
    assert NeighbourSearch(backend=backend).serves(width, k) is serves


class Searches:
    """As much of a study as its neighbour stage needs; `made` lists the widths of the tables that were searched."""

    device = "cpu"
    neighbours_entry, _table_width, _neighbours_stage = (
        Study.neighbours_entry,
        Study._table_width,
        Study._neighbours_stage,
    )

    def __init__(self, root: Path, embed: str = "embed") -> None:
        self.store, self.embed_entry = Store(root), SimpleNamespace(key=embed)
        self.embeddings = Embeddings.of(np.random.default_rng(0).normal(size=(90, 4)))
        self.made: list[int] = []

    def get(self, stage: Stage, make):
        entry = self.store.get(stage, make)
        if not entry.reused:
            self.made.append(stage.config["k"])
        return entry


def test_one_table_at_the_largest_k_serves_every_smaller_k_of_later_runs(tmp_path):
    first = Searches(tmp_path)
    wide = first.neighbours_entry(NeighbourSearch(), 20)
    later = Searches(tmp_path)
    assert later.neighbours_entry(NeighbourSearch(memory_mb=64), 8).path == wide.path
    assert later.made == []
    table = detect.Neighbours.load(wide.path)
    np.testing.assert_array_equal(SLOF(k=8).score(later.embeddings, table), SLOF(k=8).score(later.embeddings))
    later.neighbours_entry(NeighbourSearch(), 21)  # wider than any
    later.neighbours_entry(NeighbourSearch(normalise=True), 8)  # another search
    assert later.made == [21, 8]
    other = Searches(tmp_path, embed="other")  # another model's embeddings
    other.neighbours_entry(NeighbourSearch(), 8)
    assert other.made == [8]


def test_a_table_that_is_being_built_serves_nobody(tmp_path):
    study = Searches(tmp_path)
    wide = study.neighbours_entry(NeighbourSearch(), 20)
    wide.path.rename(wide.path.with_name(wide.path.name + ".partial"))
    assert study._table_width(NeighbourSearch(), 8) == 8
