"""What has to be installed: `detect` works with numpy and torch alone, and what is imported is declared."""

import ast
import re
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import detect

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"analysis", "attacks", "conf", "detect", "experiments", "run"}
BY_CHOICE = {"cleanlab", "cupy", "cuvs", "datasets", "duckdb", "pyod", "submitit", "transformers", "umap"}
BY_CHOICE |= {"triton"}
"""Imported where a user has chosen a detector, a launcher, a model, data or a command that needs it; on a GPU."""

ALONE = """
    import importlib.abc, importlib.metadata, pkgutil, re, sys

    def needed(name, seen):
        if name not in seen:
            seen.add(name)
            for line in importlib.metadata.requires(name) or ():
                if "extra ==" not in line:
                    try:
                        needed(re.match(r"[\\w.-]+", line)[0].lower().replace("_", "-"), seen)
                    except importlib.metadata.PackageNotFoundError:
                        pass
        return seen

    owners = importlib.metadata.packages_distributions()
    there = needed("lazy-loader", needed("torch", {"numpy"}))

    class Missing(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            root = name.partition(".")[0]
            if root == "detect" or root in sys.stdlib_module_names or root not in owners:
                return None
            if {owner.lower().replace("_", "-") for owner in owners[root]} & there:
                return None
            raise ModuleNotFoundError(f"No module named {root!r}", name=root)

    sys.meta_path.insert(0, Missing())
    for absent in ("pandas", "scipy", "sklearn", "faiss", "torchvision", "tqdm", "hydra", "open_clip"):
        try:
            __import__(absent)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f"{absent} is there")
"""
SCORES = """
    import numpy as np
    import detect
    for module in pkgutil.iter_modules(detect.__path__):
        if module.name != "outliers":  # extends classes of scikit-learn
            __import__(f"detect.{module.name}")
    x = np.random.default_rng(0).standard_normal((80, 8)).astype(np.float32)
    for name in ("KDistance", "LID", "LOF", "SLOF", "DAO"):
        for options in ({}, {"scope": "batch", "batch_size": 40}, {"reference_set": x[:50]}, {"normalise": True}):
            assert getattr(detect, name)(k=8, **options).score(x).shape == (80,)
        assert np.isfinite(getattr(detect, name)(k=8, backend="torch").score(x)).all()
    assert detect.Norm().score(x).shape == (80,)
    print("scored")
"""


def test_detect_works_with_numpy_and_torch_alone():
    program = textwrap.dedent(ALONE) + textwrap.dedent(SCORES)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (0, "scored\n"), done.stderr


def _imported(*folders):
    """Third-party packages that the sources of folders import, anywhere in them."""
    found = set()
    for file in (file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - OURS


def _declared(*extras):
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines}


def _distributions(package):
    return {name.lower().replace("_", "-") for name in packages_distributions().get(package, [package])}


@pytest.mark.parametrize(
    ("folders", "extras", "optional"),
    [
        (["detect"], [], {"faiss", "pyarrow", "torchvision"}),  # another search; Parquet files; the views of images
        (["attacks", "detect", "experiments", "analysis"], ["experiments"], set()),
    ],
)
def test_what_is_imported_is_declared(folders, extras, optional):
    declared = _declared(*extras)
    missing = {name for name in _imported(*folders) - BY_CHOICE - optional if not _distributions(name) & declared}
    assert not missing


def test_what_is_declared_is_imported():
    packages = {**packages_distributions(), "faiss": ["faiss-gpu", "faiss-cpu"]}
    imported = _imported("attacks", "detect", "experiments", "analysis") | {"hydra"}
    used = {name.lower().replace("_", "-") for package in imported for name in packages.get(package, [])}
    assert not _declared("experiments") - used


def test_what_the_project_is_built_of_comes_with_make():
    """`make` installs `.[dev]`, and that the experiments."""
    chosen = {"torch", "open-clip-torch", "hydra-core", "wandb", "faiss-gpu", "pandas", "matplotlib"}
    assert chosen <= _declared("experiments")
    assert "lookout[experiments,detectors,processes,hf,scale]" in PROJECT["optional-dependencies"]["dev"]
    assert "-e '.[dev]'" in (ROOT / "Makefile").read_text()
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().split()}
    assert _declared("experiments") - {"faiss-gpu", "faiss-cpu"} <= pinned


def test_the_version_is_in_one_place():
    assert re.fullmatch(r"\d+\.\d+\.\d+", detect.__version__)
    assert PROJECT["dynamic"] == ["version"]
    assert f"## [{detect.__version__}]" in (ROOT / "CHANGELOG.md").read_text() or "## [Unreleased]" in (
        ROOT / "CHANGELOG.md"
    ).read_text(encoding="utf-8")
    assert (ROOT / "detect" / "py.typed").exists()
