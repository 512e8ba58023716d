"""`help(DAO)`: every parameter of every public detector is explained, and its example runs."""

import doctest
from dataclasses import dataclass, fields
from importlib.util import find_spec

import numpy as np
import pytest

import detect
from detect import Detector, LocalDetector
from detect.parameters import says

PUBLIC = [getattr(detect, name) for name in sorted(detect.__all__)]
DETECTORS = [
    kind
    for kind in PUBLIC
    if isinstance(kind, type) and issubclass(kind, Detector) and not kind.__abstractmethods__
]


def ran(kind) -> int:
    """The number of lines of the examples of a class and its methods, all of which gave what they say."""
    runner, lines = doctest.DocTestRunner(), 0
    for test in doctest.DocTestFinder(recurse=True).find(kind, kind.__name__):
        said: list[str] = []
        assert runner.run(test, out=said.append).failed == 0, "".join(said)
        lines += len(test.examples)
    return lines


@pytest.mark.parametrize("kind", DETECTORS, ids=lambda kind: kind.__name__)
def test_every_parameter_is_explained_and_the_example_runs(kind):
    silent = [field.name for field in fields(kind) if not says(kind.__doc__, field.name)]
    assert not silent, f"{kind.__name__} does not explain {silent}"
    for package in kind.packages:
        if find_spec(package) is None:
            pytest.skip(f"{package} is an optional extra")
    assert ran(kind) > 1


@pytest.mark.parametrize("kind", [detect.Outliers, detect.Neighbours], ids=lambda kind: kind.__name__)
def test_the_examples_of_the_other_classes_run(kind):
    assert ran(kind) > 1


def test_a_detector_of_others_is_documented_alike():
    @dataclass(frozen=True, kw_only=True)
    class Theirs(LocalDetector):
        """Theirs.

        k: their own word.
        """

        share: float = 0.5

        def score_rows(self, table):
            return np.zeros(len(table.distances))

    assert Theirs.__doc__.startswith("Theirs.\n\nk: their own word.\n\nscope: ")
    assert Theirs.__doc__.count("\nk: ") == 1
    assert ">>> scores = Theirs().score(image)" in Theirs.__doc__
    assert not says(Theirs.__doc__, "share")
