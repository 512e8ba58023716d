"""From the store alone: which cells are read, which are compared, what the tables and figures say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from analysis_example import ExampleCell, example_result, example_sweep, write_store
from sklearn.metrics import roc_auc_score

from analysis import ablations, aggregate, published, table_export
from analysis.__main__ import main
from analysis.stored_cells import StoredCell, case, cell_frame, read_cells, scenes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("sweep") / "store", example_sweep(200))


@pytest.fixture(scope="module")
def cells(store):
    return read_cells(store)


@pytest.fixture(scope="module")
def small(cells):
    """The rows of the result group of the small model, on which the sweep lies."""
    return next(rows for name, rows in aggregate.result_groups(cell_frame(cells)) if "small" in name)


@pytest.fixture(scope="module")
def summary(cells, small):
    return aggregate.aggregate(aggregate.usual(small), cells)


# --- reading ----------------------------------------------------------------------------------------------------


def test_cells_come_with_scores_truth_and_the_keys_of_their_stages(tmp_path):
    result = example_result(100, 0.1, only=("slof",))
    (normal, raw) = read_cells(write_store(tmp_path, [result]))
    assert [normal.row["normalise"], raw.row["normalise"]] == [True, False]
    for cell, expected in zip((normal, raw), result.cells, strict=True):
        np.testing.assert_array_equal(cell.scores, expected.scores)
        np.testing.assert_array_equal(cell.is_poison, result.truth)
        assert set(cell.keys) == {"score", "plan", "embed", "data", "train"}
        assert cell.row["train_seconds"] == 100.0
    (scene,) = scenes([normal, raw], tmp_path)
    np.testing.assert_array_equal(scene.embeddings, result.embeddings.image)
    assert scene.pairs.captions == result.pairs.captions
    np.testing.assert_array_equal(scene.pairs.is_poison, result.truth)


def test_a_failed_cell_is_read_until_it_succeeds(tmp_path):
    broken, whole = (example_result(100, 0.1, only=("lid",), failed=failed) for failed in ("lid", None))
    store = write_store(tmp_path, [broken])
    found = read_cells(store)
    assert [cell.row["status"] for cell in found] == ["failed", "failed"]
    assert found[0].scores is None
    write_store(tmp_path, [whole])
    (folder, *_) = (tmp_path / "evaluate").glob("*/cell.json")
    (tmp_path / "evaluate" / f"{folder.parent.name}.failed.json").write_text(json.dumps(broken.cells[0].row))
    table = aggregate.usual(cell_frame(read_cells(store)))
    assert table["status"].tolist() == ["ok", "ok"]  # of the same cell the success is kept


def test_unfinished_folders_are_not_read(tmp_path):
    store = write_store(tmp_path, [example_result(50, 0.1, only=("norm",))])
    (folder,) = (path.parent for path in (store / "evaluate").glob("*/cell.json"))
    folder.rename(folder.with_suffix(".partial"))
    assert read_cells(store) == []


def test_where_keeps_cells_and_refuses_a_column_that_is_not_there(store):
    found = read_cells(store, {"attack": "sig", "seed": "1"})
    assert {(cell.row["attack"], cell.row["seed"]) for cell in found} == {("sig", 1)}
    with pytest.raises(ValueError, match=r"no cell has a column 'atack'; there are: .*attack"):
        read_cells(store, {"atack": "sig"})
    with pytest.raises(FileNotFoundError, match=r"no store at .*nowhere"):
        read_cells(store.parent / "nowhere")


def test_a_clean_models_view_is_a_case_of_its_own():
    assert case({"attack": "sig", "train_on": "poisoned"}) == "sig"
    assert case({"attack": "sig", "train_on": "clean"}) == "sig@clean"


def test_cells_whose_configuration_differs_unseen_are_not_averaged(tmp_path):
    """A stronger trigger is no other row, so only the plan's configuration tells the two attacks apart."""
    one, other = example_result(100, 0.1, only=("slof",)), example_result(100, 0.1, only=("slof",), seed=1)
    store = write_store(tmp_path, [one, other])
    plan = {cell.row["seed"]: cell.keys["plan"] for cell in read_cells(store)}[1]
    file = store / "plan" / plan / "meta.json"
    file.write_text(file.read_text().replace('"size": 8', '"size": 6'))
    rows = aggregate.usual(cell_frame(read_cells(store)))
    assert rows["seed"].tolist() == [0, 0]


# --- choosing and averaging -------------------------------------------------------------------------------------


def test_the_main_table_leaves_the_ablations_out(small):
    rows = aggregate.usual(small)
    badnets = rows[rows["case"] == "badnets"]
    assert set(badnets["k"]) == {32}
    assert set(badnets["rate"]) == {0.05}
    assert set(badnets["epochs"]) == {6}
    assert len(badnets[(badnets["detector"] == "slof") & badnets["normalise"].astype(bool)]) == 3  # a row per seed


def test_along_an_axis_only_that_axis_varies(small):
    rows = aggregate.along(small, "k")
    assert set(rows["case"]) == {"badnets"}
    assert set(rows["k"]) == {8, 16, 32, 64, 128}
    assert set(rows["rate"]) == {0.05}
    assert set(rows["detector"]) == {"slof", "dao", "kdist"}
    assert aggregate.along(small, "no such column").empty


def test_mean_and_standard_deviation_over_seeds(summary, small):
    row = summary[(summary.case == "badnets") & (summary.detector == "dao") & (summary.normalise == True)]  # noqa: E712
    usual = aggregate.usual(small)
    same = usual[(usual.case == "badnets") & (usual.detector == "dao") & (usual.normalise == True)]  # noqa: E712
    values = same["auroc"].to_numpy()
    assert len(values) == 3
    assert row["auroc"].item() == pytest.approx(values.mean(), abs=1e-12)
    assert row["auroc_std"].item() == pytest.approx(values.std(ddof=1), abs=1e-12)
    assert row["seeds"].item() == 3


def test_failed_missing_and_control_cells_are_rows_with_their_state(summary):
    state = {(r.case, r.detector, r.normalise): r for r in summary.itertuples()}
    failed = state["wanet", "lid", True]
    assert (failed.status, failed.error) == ("failed", "ValueError: lid: k=32 must be below n=30")
    assert not failed.attack_succeeded
    assert state["badnets@clean", "slof", True].control
    assert state["mislabel", "slof", True].control
    assert state["badnets", "norm", False].control
    assert not state["badnets", "slof", True].control
    rows = [{"attack": a, "detector": d, "seed": 0, "status": "failed"} for a, d in ("xy", "zy", "xw")]
    some = aggregate.aggregate(cell_frame([StoredCell(row, Path(), {}) for row in rows]), [])
    assert {(r.case, r.detector): r.status for r in some.itertuples()}["z", "w"] == "missing"


def test_bootstrap_interval_agrees_with_resampling_by_brute_force():
    rng = np.random.default_rng(0)
    is_poison = np.arange(1000) < 60
    scores = rng.normal(size=1000) + 1.2 * is_poison

    class Cell:
        pass

    cell = Cell()
    cell.scores, cell.is_poison = scores, is_poison
    found = aggregate.bootstrap_auroc([cell], draws=4000)
    poison, clean, drawn = scores[is_poison], scores[~is_poison], []
    for _ in range(800):
        sample = np.concatenate([rng.choice(poison, len(poison)), rng.choice(clean, len(clean))])
        drawn.append(roc_auc_score(is_poison, sample))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert found.low == pytest.approx(low, abs=0.008)
    assert found.high == pytest.approx(high, abs=0.008)
    cell.is_poison = np.zeros(1000, bool)
    assert aggregate.bootstrap_auroc([cell]) is None


# --- writing ----------------------------------------------------------------------------------------------------


def test_markdown_and_latex_show_spread_interval_holes_and_marks(summary):
    text = table_export.markdown(summary, "Main")
    badnets = next(line for line in text.splitlines() if line.startswith("| BadNets |"))
    row = summary[(summary.case == "badnets") & (summary.detector == "slof") & (summary.normalise == True)]  # noqa: E712
    row = row.iloc[0]
    number = table_export.number
    expected = f"{number(row.auroc)} ± {number(row.auroc_std)} [{number(row.auroc_low)}, {number(row.auroc_high)}]"
    assert expected in badnets
    wanet = next(line for line in text.splitlines() if line.startswith("| WaNet†"))
    assert "failed" in wanet
    assert "| Mislabelled‡ |" in text
    assert "BadNets, clean model‡" in text
    assert "## raw embeddings" in text

    tex = table_export.latex(summary, "Main_1")
    assert tex.count(r"\begin{tabular}") == tex.count(r"\end{tabular}") == 2
    assert r"Main\_1" in tex
    body = tex.split(r"\midrule")[1]
    columns = tex.split(r"\begin{tabular}{")[1].split("}")[0]
    assert all(line.count(" & ") == len(columns) - 1 for line in body.splitlines() if " & " in line)
    assert body.count(r"\textbf") == 3  # the best of each of three attacks


def test_rows_of_different_sizes_say_so(summary):
    assert "samples" not in table_export.markdown(summary.assign(n=400), "Main")
    mixed = summary.assign(n=np.where(summary.case == "badnets", 20_000, 400))
    text = table_export.markdown(mixed, "Main")
    assert "| BadNets, 20,000 samples |" in text
    assert "| WaNet, 400 samples† |" in text
    assert "BadNets, 20,000 samples" in table_export.latex(mixed, "Main")
    mixed.loc[mixed.index[mixed.case == "badnets"][0], "n"] = 400
    assert table_export.sizes(mixed)["badnets"] == ", 400 to 20,000 samples"


def test_published_numbers_all_have_a_source_and_unknown_stays_empty(summary):
    known = published.known()
    assert (known["source"].str.len() > 10).all()
    assert set(known["provenance"]) == set(published.PROVENANCES)
    assert set(known["quantity"]) <= set(published.QUANTITIES)
    known_top1 = known[(known.quantity == "zero_shot_top1") & (known.attack == "badnets")]
    assert known_top1["value"].tolist() == ["17.01"]
    demo = published.side_by_side({"demo shapes small": summary})
    assert (demo["ours"] == "").all()  # a demo says nothing about CC3M
    assert len(demo) == len(known)
    paper = published.side_by_side({"paper cc3m rn50": at_papers_scale(summary)})
    top1 = paper[(paper.quantity == "zero_shot_top1")].iloc[0]
    ours = summary[summary.case == "badnets"]["zero_shot_top1"].mean()
    assert (top1.paper, top1.ours) == ("17.01 %", f"{100 * ours:.1f} %")
    assert "— | " in published.markdown(paper)


def at_papers_scale(summary, **changes):
    """A summary as if its cells were of the paper's scale."""
    return summary.assign(**{"scale": "paper", "data": "cc3m", "model": "RN50", "test_set": "imagenet"} | changes)


def test_an_auroc_of_the_papers_stands_beside_ours_on_raw_embeddings(summary):
    table = published.side_by_side({"paper": at_papers_scale(summary)})
    aurocs = table[table.quantity == "auroc"]
    (dao,) = aurocs[(aurocs.attack == "badnets") & (aurocs.detector == "dao")].to_dict("records")
    ours = summary[(summary.case == "badnets") & (summary.detector == "dao") & (summary.normalise == False)]  # noqa: E712
    assert dao["paper"] == "99.14 %"
    assert dao["ours"].startswith(f"{100 * ours['auroc'].item():.2f} %")
    assert "modality image, k 32" in dao["our_setting"]
    assert dao["provenance"] == "quoted"
    others = aurocs[(aurocs.paper == "")]
    assert (others["ours"] != "").all()
    assert "dao" in set(others["detector"])  # of attacks that the paper's numbers are not known of


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ({}, {"zero_shot_top1", "auroc"}),
        ({"data": "cc12m"}, set()),
        ({"data": "shards"}, set()),
        ({"model": "vit_b16"}, set()),
        ({"scale": "demo"}, set()),
        ({"test_set": "builtin"}, {"auroc"}),
        ({"test_set": "imagenet, a part"}, {"auroc"}),
        ({"test_set": None}, {"auroc"}),
    ],
)
def test_unlike_data_and_test_sets_are_never_compared(summary, changes, compared):
    table = published.side_by_side({"group": at_papers_scale(summary, **changes)})
    both = table[(table.paper != "") & (table.ours != "")]
    assert set(both["quantity"]) == compared


def test_a_checkpoint_of_the_authors_stands_for_the_data_that_it_was_trained_on(summary):
    changes = {"data": "folders", "model": "hf-hub:hanxunh/clip_backdoor_rn50_cc3m_badnets", "epochs": 0}
    table = published.side_by_side({"group": at_papers_scale(summary[summary.case == "badnets"], **changes)})
    both = table[(table.paper != "") & (table.ours != "")]
    assert set(both["quantity"]) == {"zero_shot_top1", "auroc"}
    assert both["our_setting"].str.startswith("authors' checkpoint, planted in folders").all()
    (rate,) = table[(table.quantity == "asr") & (table.paper == "") & (table.ours != "")].to_dict("records")
    assert (rate["model"], rate["data"], rate["attack"]) == ("rn50", "cc3m", "badnets")


def test_a_summary_keeps_what_its_cells_were_measured_on(cells, small):
    both = aggregate.aggregate(aggregate.usual(small.assign(test_set="imagenet")), cells)
    assert set(both["test_set"]) == {"imagenet"}
    assert set(both["scale"]) == {"demo"}
    mixed = small.assign(test_set=["builtin", *["imagenet"] * (len(small) - 1)])
    assert set(aggregate.aggregate(aggregate.usual(mixed), cells)["test_set"].dropna()) <= {"imagenet", "builtin"}


def test_figures_exist_when_their_cells_do(small):
    drawn = {name: draw(small) for name, draw in ablations.figures().items()}
    assert {name for name, figure in drawn.items() if figure is None} == {"by_convention", "by_model"}
    one = small[(small["case"] == "sig") & (small["seed"] == 0)]
    drawn = {name for name, draw in ablations.figures().items() if draw(one) is not None}
    assert drawn == {"by_normalise", "cost"}
    other_k = one.assign(k=one["k"].where(one["detector"] != "lid", 64))  # two k, but no detector with both
    assert ablations.numeric(other_k, "k") is None


def test_architectures_stand_side_by_side_although_their_trainings_are_configured_otherwise(cells):
    table = cell_frame(cells)
    figure = ablations.categorical(table.assign(train_variant=table["model"]), "model")
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["BadNets"]


def test_panels_say_what_is_a_control_and_what_did_not_embed(small):
    titles = [axes.get_title(loc="left") for axes in ablations.categorical(small, "normalise").axes]
    expected = [
        "BadNets",
        "WaNet (did not succeed)",
        "SIG",
        "BadNets, clean model (control)",
        "Mislabelled (control)",
    ]
    assert titles[:5] == expected


def test_the_collapse_map_shows_values_and_hatches_what_is_missing(small):
    figure = ablations.collapse(small)
    panel = next(axes for axes in figure.axes if axes.get_title(loc="left") == "BadNets, SLOF")
    grid_shown = panel.images[0].get_array()
    assert grid_shown.shape == (5, 4)
    holes = int(np.isnan(np.ma.filled(grid_shown.astype(float), np.nan)).sum())
    assert holes == sum(patch.get_hatch() == "////" for patch in panel.patches)
    row = small[(small.detector == "slof") & (small.normalise == True) & (small.k == 8) & (small.scope_size == 256)]  # noqa: E712
    assert grid_shown[0, 0] == pytest.approx(row["auroc"].item())


def test_a_hole_on_an_axis_is_marked_with_a_cross(tmp_path):
    ways = [example_result(100, 0.1, only=("slof", "dao"), k=k) for k in (8, 16, 32)]
    ways[1].cells = [cell for cell in ways[1].cells if cell.row["detector"] == "slof"]
    rows = cell_frame(read_cells(write_store(tmp_path, ways)))
    figure = ablations.numeric(rows, "k")
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [list(line.get_xdata()) for line in crosses if len(line.get_xdata())] == [[16.0]]
    curves = [line.get_ydata() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [np.isnan(curve).tolist() for curve in curves] == [
        [False] * 3,
        [False, True, False],
    ]  # a gap


# --- the command ------------------------------------------------------------------------------------------------


def test_paper_makes_everything_once(tmp_path, capsys):
    local = ("slof", "norm")
    ways = [example_result(100, 0.1, only=local, k=k, shift=k / 40) for k in (8, 32)]
    ways += [example_result(100, 0.1, only=local, k=32, attack="sig", failed="norm")]
    store, out = write_store(tmp_path / "store", ways), tmp_path / "out"
    command = ["paper", "--store", str(store), "--out", str(out), "--formats", "png", "--scenes", "1"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "by_rate, by_scope_size, by_epochs" in said.split("no cells yet (demo shapes small): ")[1]
    assert "1 failed" in said
    there = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    wanted = {"cells.csv", "report.html", "beside_the_paper.csv", "beside_the_paper.md"}
    wanted |= {f"main_table_demo_shapes_small{suffix}" for suffix in (".csv", ".md", ".tex")}
    figures = ("by_k", "by_normalise", "cost", "roc_sig", "scores_sig", "embedding_sig", "embedding_badnets")
    assert wanted | {f"figures_demo_shapes_small/{name}.png" for name in figures} <= there
    assert len(pd.read_csv(out / "cells.csv")) == len(read_cells(store))

    drawn = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert main(command) == 0  # nothing new, so nothing is drawn
    said = capsys.readouterr().out
    assert said.startswith(f"up to date: {store} holds nothing new")
    assert str(out / "report.html") in said
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == drawn
    write_store(store, [example_result(100, 0.1, only=local, k=16)])
    capsys.readouterr()
    main(command)
    assert "6 of them as before" in capsys.readouterr().out  # the views of both attacks
    again = {path.name for path in out.rglob("*.png") if path.stat().st_mtime_ns > drawn.get(path, 0)}
    assert again == {"by_k.png", "by_normalise.png", "cost.png"}
    (out / "figures_demo_shapes_small" / "by_k.png").unlink()
    main(command)
    assert (out / "figures_demo_shapes_small" / "by_k.png").exists()


def test_the_command_loads_no_torch_and_errors_are_plain(store, tmp_path):
    code = (
        "import sys; from analysis.__main__ import main\n"
        f"main(['table', '--store', {str(store)!r}, '--out', {str(tmp_path)!r}])\n"
        "print('heavy', [m for m in ('torch', 'sklearn', 'wandb', 'open_clip') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.rstrip().endswith("heavy []")
    for arguments, said in (
        (["--store", "nowhere"], "no store at nowhere"),
        (["--where", "x=1"], "no cell has a column"),
    ):
        with_store = arguments if "--store" in arguments else [*arguments, "--store", str(store)]
        command = [sys.executable, "-m", "analysis", "table", *with_store, "--out", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.returncode == 2
        assert said in done.stderr


def test_cells_of_a_run_and_of_the_store_draw_the_same(store, cells):
    from analysis import figures

    result = example_result(200, 0.05, seed=0, asr=0.97)
    stored = [c for c in cells if c.row["attack"] == "sig" and c.row["seed"] == 0]
    assert len(figures.headline(stored)) == len(figures.headline(result.cells))
    assert isinstance(result.cells[0], ExampleCell)
