"""A run's files and printed table: every cell is there, failures and controls are visible, figures can be
read.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from analysis_example import DETECTORS, ExampleCell, example_result
from rich.console import Console

from analysis import embedding_figure, figures, report, style, tables

ROOT = Path(__file__).parents[2]

FIGURES = ("roc.png", "scores.png", "embedding.png", "suspects.png")


def printed(renderable, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_write_leaves_a_row_per_cell_and_four_figures(tmp_path):
    result = example_result(n=400, rate=0.05)
    report.write(result, tmp_path / "new")
    table = pd.read_csv(tmp_path / "new" / "results.csv")
    assert len(table) == len(result.cells)
    needed = [
        "attack",
        "detector",
        "normalise",
        "scope",
        "k",
        "seed",
        "n",
        "n_poison",
        "auroc",
        "auprc",
        "fpr95",
        "fpr100",
    ]
    assert set(needed) | {"zero_shot_top1", "asr", "seconds"} <= set(table)
    for row, cell in zip(table.itertuples(), result.cells, strict=True):
        assert row.auroc == pytest.approx(cell.row["auroc"], abs=1e-12)
    for name in FIGURES:
        assert (tmp_path / "new" / name).stat().st_size > 5_000


def test_the_table_shows_normalised_and_raw_side_by_side_with_controls_last():
    result = example_result(n=400, rate=0.05)
    text = printed(tables.run_table([cell.row for cell in result.cells], result.metadata))
    by = {(cell.row["detector"], cell.row["normalise"]): cell.row for cell in result.cells}
    line = next(line for line in text.splitlines() if line.strip().startswith("SLOF"))
    assert f"{tables.number(by['slof', True]['auroc'])} | {tables.number(by['slof', False]['auroc'])}" in line
    names = [line.split("  ")[0].strip() for line in text.splitlines() if " | " in line]
    assert names.index("Norm") == len(names) - 2  # the caption below the table also holds a bar
    assert "attack success rate 98.0 %" in text
    assert "400 samples, 20 poisoned (5.00 %)" in text
    assert max(map(len, text.splitlines())) <= 80
    last = tables.number(by["slof", False]["recall_at_1pct"])
    assert line.rstrip().endswith(last)  # nothing is cut off


def test_a_failed_cell_is_a_visible_hole_with_its_error(tmp_path):
    result = example_result(n=300, rate=0.05, failed="lid")
    text = " ".join(printed(report.write(result, tmp_path)).split())
    assert "LID fail | fail" in text
    assert "failed: LID (raw): ValueError: lid: k=32 must be below n=30" in text
    table = pd.read_csv(tmp_path / "results.csv")
    assert table[table.detector == "lid"].status.tolist() == ["failed", "failed"]
    assert table[table.detector == "lid"].auroc.isna().all()


def test_when_every_cell_failed_the_errors_are_still_written(tmp_path):
    cells = [ExampleCell({"attack": "sig", "detector": "slof", "status": "failed", "error": "no"}, None)]
    result = SimpleNamespace(**(vars(example_result(n=50, rate=0.1)) | {"cells": cells}))
    assert "failed: SLOF: no" in printed(report.write(result, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"attack": "wanet", "asr": 0.31}, ["did not succeed (attack success rate 31.0 % < 50 %)"]),
        ({"attack": "wanet", "asr": 0.5}, []),
        ({"attack": "badnets", "asr": None}, []),
        ({"attack": "mislabel", "asr": 0.02}, ["control: target caption without a trigger"]),
        ({"attack": "none", "asr": None}, ["control: no poisoning"]),
        ({"attack": "badnets", "asr": 0.01, "train_on": "clean"}, ["trained on the clean data"]),
    ],
)
def test_warnings_above_the_table(metadata, expected):
    said = tables.warnings(metadata)
    assert len(said) == len(expected)
    for line, part in zip(said, expected, strict=True):
        assert part in line


def test_clean_data_gives_figures_without_a_poison(tmp_path):
    report.write(example_result(n=200, rate=0, attack="none", asr=None), tmp_path)
    for name in FIGURES:
        assert (tmp_path / name).stat().st_size > 5_000


def test_numbers_as_printed():
    assert [tables.number(x) for x in (0.98512, 0.9996, 1, 0, None, float("nan"))] == [
        ".985",
        "1.00",
        "1.00",
        ".000",
        "–",
        "–",
    ]
    assert tables.percent(0.985) == "98.5 %"


def test_detectors_that_differ_in_k_are_told_apart():
    rows = [{"detector": "slof", "k": k, "scope": "batch"} for k in (8, 16)] + [{"detector": "dao", "k": 8}]
    assert [tables.cell_label(row, rows) for row in rows] == ["SLOF, k 8", "SLOF, k 16", "DAO"]


def test_headline_is_normalised_except_for_detectors_that_only_have_raw():
    cells = figures.headline(example_result(n=300, rate=0.05).cells)
    assert {cell.row["detector"]: cell.row["normalise"] for cell in cells} == {
        name: shift[0] is not None for name, shift in DETECTORS.items()
    }
    aurocs = [cell.row["auroc"] for cell in cells]
    assert aurocs == sorted(aurocs, reverse=True)


def test_views_show_the_best_density_ratio_detector_never_a_control():
    result = example_result(n=300, rate=0.05)
    for cell in result.cells:
        cell.row["auroc"] = {"slof": 0.8, "dao": 0.9, "norm": 1.0, "kdist": 0.99}.get(cell.row["detector"], 0.5)
    assert report.leading_cell(result.cells).row["detector"] == "dao"
    for cell in result.cells:
        cell.row["auroc"] = float("nan")  # clean data
    assert report.leading_cell(result.cells).row["detector"] == "slof"


def test_target_class_is_read_from_the_captions():
    result = example_result(n=300, rate=0.05)
    expected = [" banana" in caption for caption in result.pairs.captions]
    assert report.target_class(result.pairs, None).tolist() == expected


def test_scores_of_another_length_are_refused(tmp_path):
    result = example_result(n=300, rate=0.05)
    result.cells[0] = ExampleCell(result.cells[0].row, result.cells[0].scores[:-1])
    with pytest.raises(ValueError, match=r"scores of shape \(299,\), samples \(300,\)"):
        report.write(result, tmp_path)


def test_flat_view_is_the_pca_of_unit_vectors():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 5)) * [5, 3, 1, 1, 1] + 2
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    expected = centred @ axes[:2].T
    view = embedding_figure.flat_view(x * rng.uniform(0.5, 2, (60, 1)))  # lengths must not matter
    np.testing.assert_allclose(np.abs(view), np.abs(expected), atol=1e-10)
    with pytest.raises(ValueError, match="pca, tsne or umap, not 'lle'"):
        embedding_figure.flat_view(x, "lle")


def test_drawing_leaves_the_callers_matplotlib_settings_alone():
    import matplotlib

    before = matplotlib.rcParams["axes.spines.top"], matplotlib.rcParams["font.size"]
    result = example_result(n=100, rate=0.1)
    figures.roc(result.cells, result.pairs.is_poison)
    assert (matplotlib.rcParams["axes.spines.top"], matplotlib.rcParams["font.size"]) == before


def test_roc_lines_differ_by_dashes_and_the_legend_has_both_aurocs():
    result = example_result(n=300, rate=0.05)
    figure = figures.roc(result.cells, result.pairs.is_poison)
    lines = {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}
    by = {(cell.row["detector"], cell.row["normalise"]): cell.row["auroc"] for cell in result.cells}
    slof = f"{tables.number(by['slof', True])}  SLOF  (raw {tables.number(by['slof', False])})"
    assert slof in lines
    assert f"{tables.number(by['norm', False])}  Norm  (raw)  control" in lines
    dashes = {label: (line._unscaled_dash_pattern[1] or ()) for label, line in lines.items()}
    assert len({tuple(dash) for dash in dashes.values()}) == len(dashes)
    assert figure.axes[1].get_xscale() == "log"


def test_no_two_detectors_share_their_dashes():
    names = [path.stem for path in (ROOT / "conf/detector").glob("[!_]*.yaml")]
    names = sorted({*names, "one", "another"})  # two of them unknown to the house
    looks = {name: style.detector_dashes(name, names) for name in names}
    assert len(set(looks.values())) == len(names)
    assert style.line_note(["slof", "tandem"]) == ""
    assert style.line_note(["slof", "norm"]) == style.line_note(["slof", "flicker"]) == style.LINES
    assert style.detector_line("tandem")["linestyle"] == "-"
    assert style.detector_line("norm")["linestyle"] == (0, (3, 3))


def test_analysis_imports_nothing_heavy():
    heavy = ["torch", "torchvision", "open_clip", "sklearn", "pandas", "matplotlib", "wandb"]
    code = f"import sys, analysis.report, analysis.tables; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
