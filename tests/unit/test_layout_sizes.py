"""Modules and functions stay short enough to be read, and so does the mechanism of the stages."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = [
    ROOT / "run.py",
    *(path for wing in ("attacks", "detect", "experiments", "analysis") for path in (ROOT / wing).rglob("*.py")),
]


def lines(path):
    return len(path.read_text().splitlines())


def test_modules_have_fewer_than_300_lines():
    assert len(MODULES) > 200
    assert not {str(path.relative_to(ROOT)): lines(path) for path in MODULES if lines(path) >= 300}


def test_functions_have_at_most_50_lines():
    long = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = node.end_lineno - node.lineno + 1
                if size > 50:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = size
    assert not long


def test_the_mechanism_of_the_stages_has_fewer_than_250_lines():
    pipeline = ROOT / "experiments/pipeline"
    assert lines(pipeline / "graph.py") + lines(pipeline / "runner.py") < 250


def test_few_lines_are_left_unformatted():
    files = [*MODULES, *(ROOT / "tests").rglob("*.py")]
    assert sum(path.read_text().count("# fmt" + ": ") for path in files) < 10
