"""What makes a stored score or neighbour table stale, and what does not."""

from importlib import import_module
from pathlib import Path

import pytest
from pipeline_example import runner

import detect
from detect import LID, LOF, Detector, Flicker, LocalDetector, NeighbourSearch

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


def score_key(name: str) -> str:
    """Key of a detector's stored scores."""
    made = runner(f"detector=[{name}]", "normalise=[true]")
    (spec,) = made.experiment.specs()
    return made.key("scores", spec=spec)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        (LID, "tandem"),
        (LOF, "tandem"),
        (Flicker, "tandem"),
        (LID, "dao"),
        (detect.KDistance, "lof"),
        (detect.KDistance, "tandem"),
        (detect.KDistance, "slof"),
        (detect.CLIPScore, "safeclip"),
        (detect.CLIPScore, "tandem"),
        (LID, "lid"),
    ],
)
def test_raising_the_version_of_a_part_makes_stored_scores_stale(monkeypatch, part, whole):
    before = score_key(whole)
    assert before == score_key(whole)
    monkeypatch.setattr(part, "version", part.version + 1)
    assert score_key(whole) != before


def test_raising_the_version_of_another_detector_does_not(monkeypatch):
    before = score_key("slof")
    monkeypatch.setattr(LID, "version", 99)
    assert score_key("slof") == before


def test_raising_the_version_of_the_search_makes_all_local_scores_stale(monkeypatch):
    before, other = score_key("slof"), score_key("clip_score")
    monkeypatch.setattr("detect.base.VERSION", 99)
    assert score_key("slof") != before
    assert score_key("clip_score") == other


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
