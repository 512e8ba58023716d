"""The stage `defence`: one row of `task=defences`, kept so that `python -m analysis` finds it beside the cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from experiments.pipeline.graph import Run


def defence(run: Run, measures: dict[str, Any], *, row: Mapping[str, Any]) -> dict[str, Any]:
    """keeps what a defence made of a poisoned model: the row, whose input is the undefended model's measures"""
    return dict(row)
