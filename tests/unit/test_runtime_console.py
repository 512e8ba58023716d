"""A console that lacks letters: they are replaced, whichever command prints them."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import analysis.__main__
import detect.__main__
from experiments.bench import __main__ as bench
from experiments.data.shapes import export as shapes_export
from experiments.runtime.console import replace_unprintable

ROOT = Path(__file__).parents[2]


def ascii_stdout(monkeypatch):
    """An ASCII stdout; gives what was printed."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)

    def printed():
        stream.flush()
        return stream.buffer.getvalue().decode("ascii")

    return printed


def test_letters_and_boxes_are_replaced(monkeypatch):
    from rich.console import Console
    from rich.table import Table

    printed = ascii_stdout(monkeypatch)
    replace_unprintable()
    print("na\u00efve \u00b7 \udcff")
    table = Table("\u00e9t\u00e9", title="a \u00b7 b")
    table.add_row("\u2013")
    Console(width=40).print(table)
    assert printed().startswith("na?ve ? ?\n")
    assert "?t?" in printed()
    assert "+-" in printed()


@pytest.mark.parametrize("command", ["analysis", "detect", "bench", "shapes_export"])
def test_every_command_begins_with_it(command, monkeypatch):
    ascii_stdout(monkeypatch)
    mains = {
        "analysis": analysis.__main__.main,
        "detect": detect.__main__.main,
        "bench": bench.main,
        "shapes_export": lambda _: shapes_export.main(),
    }
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as stop:
        mains[command](["--help"])
    assert stop.value.code == 0
    assert sys.stdout.errors == "replace"


def test_a_stdout_of_another_kind_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    replace_unprintable()


def test_run_prints_on_an_ascii_console():
    command = [sys.executable, "run.py", "--cfg", "job", "target='\u00e9toile'"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=240
    )
    assert (done.returncode, b"target: ?" in done.stdout) == (0, True), done.stderr
    assert b"UnicodeEncodeError" not in done.stderr
