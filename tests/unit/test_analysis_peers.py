"""Attacks, detectors and defences in one table: which rows stand side by side, and what is left out."""

import json
import logging

import pandas as pd
import pytest
from analysis_example import example_sweep, write_store

from analysis import peers
from analysis.__main__ import main
from analysis.aggregate import GROUP_COLUMNS, result_groups
from analysis.stored_cells import cell_frame, read_cells
from experiments.runtime.store import Recipe, Store

GROUP = {"scale": "demo", "data": "shapes", "test_set": "builtin", "model": "small"}


def detector(case, name, auroc, **changes):
    row = {"case": case, "detector": name, "normalise": True, "auroc": auroc, "asr": 0.9, "zero_shot_top1": 0.99}
    return row | {"seeds": 3, "rate": 0.01} | changes


def defence(attack, name, asr, **changes):
    row = {**GROUP, "attack": attack, "rate": 0.01, "seed": 0, "trained_on": name}
    return row | {"asr": asr, "zero_shot_top1": 0.95} | changes


SUMMARY = pd.DataFrame(
    [
        detector("badnets", "slof", 0.95),
        detector("badnets", "slof", 0.5, normalise=False),
        detector("badnets", "norm", 0.4, normalise=False),
        detector("badnets@clean", "slof", 0.7),
        detector("sig", "slof", 0.8, asr=0.2),
        detector("mislabel", "slof", 0.5, asr=None),
    ]
)


def table(*defences):
    return peers.side_by_side(SUMMARY, defences, "demo shapes small")


def test_a_defence_is_the_mean_over_seeds_and_the_last_of_a_seed_counts():
    found = table(
        defence("badnets", "PAR", 0.7),
        defence("badnets", "PAR", 0.1),
        defence("badnets", "PAR", 0.3, seed=1),
    )
    (row,) = found[found["kind"] == "defence"].to_dict("records")
    assert (row["method"], row["asr"], row["seeds"]) == ("PAR", pytest.approx(0.2), 2)


@pytest.mark.parametrize("changes", [{"rate": 0.05}, {"scale": "photos"}, {"model": "rn50"}])
def test_another_rate_or_group_stands_elsewhere(changes):
    assert not (table(defence("badnets", "PAR", 0.1, **changes))["kind"] == "defence").any()


def test_raw_embeddings_and_clean_models_are_left_out():
    found = table(defence("badnets", "PAR", 0.1))
    detectors = found[found["kind"] == "detector"]
    assert list(zip(detectors["attack"], detectors["auroc"], strict=True)) == [
        ("badnets", 0.95),
        ("sig", 0.8),
        ("mislabel", 0.5),
    ]


def test_the_table_has_an_attack_in_each_column():
    lines = peers.markdown(table(defence("badnets", "PAR", 0.055), defence("wanet", "PAR", 0.2)), "T").splitlines()
    assert lines[2] == "|  | BadNets | WaNet | SIG† | Mislabelled‡ |"
    assert "| poisoned | 1 % | 1 % | 1 % | 1 % |" in lines
    assert "| ASR | .900 | – | .200 | – |" in lines
    assert "| SLOF | .950 | – | .800 | .500 |" in lines
    assert "| *PAR* | .055, .950 | .200, .950 | – | – |" in lines
    assert "| *seeds of the defences* | 1 | 1 | – | – |" in lines


def keep(store, row):
    """Put a row into the store, as the stage does."""
    made = Store(store).get(
        Recipe("defence", 1, {"settings": {"row": row}}, {}),
        lambda folder: (folder / peers.ROW).write_text(json.dumps(row)) and None,
    )
    return made.path / peers.ROW


def test_the_command_writes_it_from_the_store_and_leaves_damaged_rows_out(tmp_path, capsys, caplog):
    store = write_store(tmp_path / "store", example_sweep(100))
    assert main(["table", "--store", str(store), "--out", str(tmp_path / "out")]) == 0
    assert not list((tmp_path / "out").glob("peers_*"))
    _, rows = result_groups(cell_frame(read_cells(store)))[0]
    one = rows[~rows["case"].str.endswith("@clean")].iloc[0]
    of = {column: one[column] for column in GROUP_COLUMNS if column in one and one[column] == one[column]}
    row = defence(one["attack"], "PAR | fine-tuned", 0.125, rate=float(one["rate"])) | dict.fromkeys(GROUP) | of
    whole, broken = keep(store, row), keep(store, row | {"asr": 0.9, "seed": 1})
    broken.write_text(broken.read_text().replace("0.9", "0.8"))
    with caplog.at_level(logging.WARNING):
        assert main(["table", "--store", str(store), "--out", str(tmp_path / "out")]) == 0
    assert f"{broken.parent} is damaged and left out" in caplog.text
    (file,) = (tmp_path / "out").glob("peers_*.md")
    assert "| *PAR \\| fine-tuned* |" in file.read_text()
    assert ".125, .950" in file.read_text()
    assert whole.exists()
    capsys.readouterr()
