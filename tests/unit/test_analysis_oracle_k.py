"""The oracle-chosen k gives a bound that only comparable cells may set."""

import pytest

from analysis.oracle_k import markdown, oracle_k
from analysis.tables import frame

USUAL = {
    "case": "badnets",
    "attack": "badnets",
    "rate": 0.01,
    "seed": 0,
    "n": 1000,
    "n_poison": 10,
    "asr": 0.9,
    "scope": "batch",
    "scope_size": 100,
    "modality": "image",
    "convention": "published",
    "normalise": True,
    "status": "ok",
}


def swept(sizes=(8, 16, 32, 64), **changes):
    """k-dist best at 16 (.80), SLOF at 64 (.90)."""
    rows = []
    for place, k in enumerate(sizes):
        rows.append({**USUAL, "detector": "kdist", "k": k, "auroc": (0.7, 0.8, 0.6, 0.5)[place], **changes})
        rows.append({**USUAL, "detector": "slof", "k": k, "auroc": (0.5, 0.6, 0.7, 0.9)[place], **changes})
    return rows


def test_the_best_of_all_k_and_scopes_and_what_tandem_has_beside_it():
    tandem = {**USUAL, "detector": "tandem", "k": 64, "auroc": 0.93}
    raw = [{**row, "normalise": False, "auroc": 0.99} for row in [*swept(), tandem]]
    joint = {**USUAL, "detector": "slof", "k": 32, "modality": "joint", "auroc": 0.98}
    lid = {**USUAL, "detector": "lid", "k": 64, "auroc": 0.97}
    failed = {**USUAL, "detector": "slof", "k": 128, "status": "failed"}
    table = oracle_k(frame([*swept(), tandem, *raw, joint, lid, failed]))
    (row,) = table.to_dict("records")
    assert (row["best"], row["best_detector"], row["best_k"]) == (0.9, "slof", 64)
    assert row["tandem"] == 0.93
    assert row["flicker"] != row["flicker"]  # was not run
    assert "| .900 (SLOF, k = 64 of 100) | .930 (+0.030) |" in markdown(table, "t")


def test_the_oracle_chooses_the_scope_too():
    wide = swept(scope_size=400, auroc=0.5)
    best = {**USUAL, "detector": "lof", "scope_size": 400, "k": 32, "auroc": 0.97}
    (row,) = oracle_k(frame([*swept(), *wide, best])).to_dict("records")
    assert (row["best"], row["best_detector"], row["best_k"], row["best_scope"]) == (0.97, "lof", 32, 400)


def test_each_model_has_a_bound_of_its_own_and_controls_have_none():
    rows = [
        *swept(),
        *swept(rate=0.1),
        *swept(seed=1),
        *swept(attack="mislabel", case="mislabel"),
        *swept(train_on="clean", case="badnets@clean"),
    ]
    table = oracle_k(frame(rows))
    assert table[["rate", "seed"]].to_numpy().tolist() == [[0.01, 0], [0.01, 1], [0.1, 0]]


@pytest.mark.parametrize("rows", [swept((8, 16, 32)), swept(attack="mislabel", case="mislabel")])
def test_without_a_sweep_of_k_there_is_no_bound(rows):
    assert oracle_k(frame(rows)) is None
