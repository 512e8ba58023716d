"""A Markdown table keeps its columns and lines, whatever its cells hold."""

import pytest

from analysis.markdown import markdown_table, shortened


def test_a_table():
    lines = markdown_table(["a", "b"], [["x", 1], ("y", None)])
    assert lines == ["| a | b |", "|---|---|", "| x | 1 |", "| y | None |"]
    assert markdown_table(["a"], []) == ["| a |", "|---|"]


def test_no_cell_ends_its_column_or_its_line():
    [*_, line] = markdown_table(["caption", "n"], [["a | b\nc\r\n\x1b[2J d\u202e", 2]])
    assert line == "| a \\| b c \\x1b[2J d\\u202e | 2 |"


@pytest.mark.parametrize("row", [["x"], ["x", "y", "z"]])
def test_a_row_of_another_width_is_refused(row):
    with pytest.raises(ValueError, match="a row of the table must have 2 cells, got"):
        markdown_table(["a", "b"], [row])


def test_a_long_text_is_shortened():
    assert shortened("a  b\nc") == "a b c"
    assert shortened("x" * 91) == "x" * 89 + "…"
