"""The command lines that are written in README.md, the other pages and the heads of the YAML files."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
HEADS = sorted((ROOT / "conf").rglob("*.yaml"))
PROGRAMS = ("python", "torchrun", "make")
# Placeholders of the pages, and what may stand there.
FILLED = {"model.folder": "folder", "data.shards": "shards.tar", "task.target": "a cake"}


def commands() -> list[tuple[str, list[str]]]:
    """(where it stands, its words) of every command line, without what the shell does (variables, comments)."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for line in _lines("\n".join(re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S))):
            found += _command(page, line)
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for line in re.findall(r"`([^`]+)`", prose):
            found += _command(page, line.replace("\n", " "))
    for head in HEADS:
        comments = [line.lstrip("# ") for line in head.read_text().splitlines() if line.startswith("#")]
        for line in _lines("\n".join(comments)):
            alone = re.match(r"(model|data|eval|logger)=\w", line) and all("=" in word for word in line.split())
            words = f"python run.py {line}" if alone else line
            found += _command(head, re.sub(r"^.*?(?=python run\.py)", "", re.split(r" {4,}|  +\(", words)[0]))
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.replace("\\\n", " ").splitlines()]


def _command(place: Path, line: str) -> list[tuple[str, list[str]]]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # prose with an apostrophe
        return []
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]) and len(words) > 1:
        words = words[1:]  # LOOKOUT_DATA=/data
    if any(word.startswith("[group=") for word in words):  # the form of a command line
        return []
    if not words or words[0].removeprefix(".venv/bin/") not in PROGRAMS or len(words) < 2:
        return []
    return [(str(place.relative_to(ROOT)), [words[0].removeprefix(".venv/bin/"), *words[1:]])]


def overrides(words: list[str]) -> list[str] | None:
    """What `run.py` is given, placeholders filled in; None if it is another program."""
    if "run.py" not in words:
        return None
    given = []
    for word in words[words.index("run.py") + 1 :]:
        key, _, value = word.partition("=")
        if (value == "..." and key not in FILLED) or word in ("...", ".") or word.startswith("<"):
            continue  # any other choice
        if value == "..." or "<" in value:
            word = f"{key}={FILLED.get(key, 'x')}"
        given.append(re.sub(r"\$\w+", "x", word))
    return given
