"""CONTRIBUTING.md's recipes, followed to the word in a copy of the tree, pass the tests that concern them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("attacks", "detect", "experiments", "analysis", "conf", "tests", "run.py", "pyproject.toml")
CONTRACTS = ["tests/contract/test_detect_contract.py", "tests/contract/test_attacks_contract.py"]

LOCAL = '''"""Mean distance to the k nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detect.base import LocalDetector
from detect.search.neighbours import Neighbours


@dataclass(frozen=True, kw_only=True)
class Near(LocalDetector):
    """mean_j || x - x_j ||."""

    def score_rows(self, table: Neighbours) -> np.ndarray:
        return table.distances[:, : self.k].mean(axis=1)
'''
LOCAL_YAML = """# @package detector.near
# By the mean distance.
defaults:
  - _local@_here_
  - _self_
_target_: detect.Near
"""
DETECTOR = '''"""Distance from the mean image embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detect.base import Detector
from detect.embeddings import DetectorInputs


@dataclass(frozen=True, kw_only=True)
class Mine(Detector):
    """|| x - mean(x) ||."""

    def _score(self, inputs: DetectorInputs) -> np.ndarray:
        image = inputs.embeddings.image
        return np.linalg.norm(image - image.mean(axis=0), axis=1)
'''
TRIGGER = '''"""A bar at the top of the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from attacks.triggers.base import Parameters, Trigger


@dataclass(frozen=True, kw_only=True)
class Mine(Trigger):
    """Rows of white, as many as are drawn."""

    name: str = "mine"
    most: int = 4

    def draw(self, rng: np.random.Generator, size: int) -> Parameters:
        return {"rows": int(rng.integers(2, self.most + 1))}

    def test_parameters(self, size: int) -> Parameters:
        return {"rows": self.most}

    def _apply(self, images: np.ndarray, parameters: Sequence[Parameters]) -> np.ndarray:
        for image, drawn in zip(images, parameters, strict=True):
            image[: drawn["rows"]] = 255
        return images
'''


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the tree in which both recipes were followed."""
    tree = tmp_path_factory.mktemp("tree")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tree / part, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, tree / part)
    (tree / "detect/mine.py").write_text(DETECTOR)
    (tree / "conf/detector/mine.yaml").write_text(
        "# @package detector.mine\n# By the mean.\n_target_: detect.Mine\n"
    )
    add_line(tree / "detect/__init__.pyi", "from .mine import Mine as Mine\n")
    (tree / "detect/near.py").write_text(LOCAL)
    (tree / "conf/detector/near.yaml").write_text(LOCAL_YAML)
    add_line(tree / "detect/__init__.pyi", "from .near import Near as Near\n")
    (tree / "attacks/triggers/mine.py").write_text(TRIGGER)
    add_line(tree / "attacks/__init__.pyi", "from .triggers.mine import Mine as Mine\n")
    (tree / "conf/attack/mine.yaml").write_text(
        "# A bar.\n_target_: attacks.Attack\n_convert_: all\nname: mine\nrate: 0.005\ntarget: ${target}\n"
        "captions: template\ntriggers:\n  - _target_: attacks.Mine\n    most: 4\n"
    )
    names = (tree / "analysis/style.py").read_text()
    names = names.replace("_DETECTORS = {", '_DETECTORS = {\n    "mine": ("My detector", "#123456"),', 1)
    names = names.replace("\n_ATTACKS = {", '\n_ATTACKS = {\n    "mine": "My attack",', 1)
    (tree / "analysis/style.py").write_text(names)
    return tree


def add_line(file, line):
    file.write_text(file.read_text() + line)


def python(tree, *words, **environment):
    variables = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *words], cwd=tree, env=variables, capture_output=True, text=True, timeout=500
    )


def test_the_page_names_the_files_that_the_recipes_touch():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for named in (
        "detect/mine.py",
        "conf/detector/mine.yaml",
        "detect/__init__.pyi",
        "attacks/triggers/mine.py",
        "conf/attack/mine.yaml",
        "attacks/__init__.pyi",
        "analysis/style.py",
    ):
        assert f"`{named}`" in page
    for line in ("from .mine import Mine as Mine", "from .triggers.mine import Mine as Mine"):
        assert f"`{line}`" in page
    commands = re.findall(r"`(python run\.py [^`]+)`", page)
    assert "python run.py 'detector=[mine,slof]'" in commands
    assert "python run.py attack=mine" in commands


@pytest.mark.slow
def test_a_new_detector_and_a_new_attack_pass_their_contracts(tree):
    chosen = "mine or near or every_file or share_their_dashes"
    ended = python(
        tree,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        *CONTRACTS,
        "tests/unit/test_analysis_report.py",
        "-k",
        chosen,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]
    assert "[100%]" in ended.stdout


@pytest.mark.slow
def test_types_hold(tree):
    pytest.importorskip("mypy")
    ended = python(tree, "-m", "mypy", "detect/mine.py", "detect/near.py", "attacks/triggers/mine.py")
    assert ended.returncode == 0, ended.stdout


def test_the_label_stands_in_the_tables(tree):
    code = (
        "from rich.console import Console\nfrom analysis.tables import run_table\n"
        "row = {'detector': 'mine', 'auroc': .9, 'normalise': None}\n"
        "Console(width=120).print(run_table([row], {'attack': 'mine', 'n': 100, 'n_poison': 1, 'seed': 0}))\n"
    )
    ended = python(tree, "-c", code)
    assert "My detector" in ended.stdout, ended.stderr
    assert "attack My attack" in ended.stdout


def test_both_can_be_chosen(tree):
    ended = python(tree, "run.py", "attack=mine", "detector=[mine,slof]", "--cfg", "job")
    assert ended.returncode == 0, ended.stderr
    assert "_target_: detect.Mine" in ended.stdout
    assert "name: mine" in ended.stdout
