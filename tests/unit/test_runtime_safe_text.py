"""Foreign texts on a terminal and in a CSV."""

import csv
import io

import pandas as pd
import pytest

from experiments.runtime.safe_text import csv_cell, csv_table, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;title\x07 cat\r\n", r"a\x1b]0;title\x07 cat\x0d\x0a"),
        ("\x9b2J", r"\x9b2J"),
        ("a\x00b\x7f", r"a\x00b\x7f"),
        ("gpj.\u202ecat", r"gpj.\u202ecat"),
        ("\u2066a\u2028", r"\u2066a\u2028"),
        ("name\udcff.jpg", r"name\udcff.jpg"),
        ("名前 été 👩\u200d🚀", "名前 été 👩\u200d🚀"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text, shown):
    assert printable(text) == shown
    shown.encode()


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1+1", "\t=1", "＝1+1"])
def test_formulas_are_made_harmless(text):
    cell = csv_cell(text)
    assert cell == text.replace("\t", r"\x09") if text.startswith("\t") else cell == "'" + text
    assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t"))


@pytest.mark.parametrize("value", ["a = b", "-1.5", "+3e-4", "-inf", -3, 2.5, None, True, ""])
def test_numbers_and_plain_texts_stay(value):
    assert csv_cell(value) is value or csv_cell(value) == value


def test_tables():
    table = pd.DataFrame({"id": [-1, 2], "caption": ["=1+1", "a\x1bcat"], "z": [-0.5, None], "note": [None, "-x"]})
    before = table.copy()
    text = csv_table(table).to_csv(index=False)
    pd.testing.assert_frame_equal(table, before)
    rows = list(csv.reader(io.StringIO(text)))
    assert rows == [
        ["id", "caption", "z", "note"],
        ["-1", "'=1+1", "-0.5", ""],
        ["2", r"a\x1bcat", "", "'-x"],
    ]
    assert list(csv_table(pd.DataFrame({"=a": [1]})).columns) == ["'=a"]
