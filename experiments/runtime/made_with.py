"""What a result was computed with: versions of packages, and the commit of this code."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


@functools.cache
def made_with() -> dict[str, Any]:
    """`versions` and `commit`, as a meta.json holds them."""
    packages = ("torch", "open_clip_torch", "numpy", "scikit-learn", "faiss-gpu", "faiss-cpu")
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = "unknown"  # an installed package, or a machine without git
    return {"versions": versions, "commit": commit}
