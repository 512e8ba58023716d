"""CONTRIBUTING.md's table of stages is that of the declared stages; its walk names files that exist."""

import re
from pathlib import Path

from experiments.pipeline.overview import summary
from experiments.pipeline.stages import STAGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()


def rows(heading):
    """The cells of the rows of the first table under a heading, without its own heading and rule."""
    lines = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].splitlines()
    table = [line for line in lines if line.startswith("|")]
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table[2:]]


def test_the_table_lists_every_stored_stage_as_it_is_declared():
    declared = [(stage.name, summary(stage)) for stage in STAGES.values() if stage.name is not None]
    assert rows("The stages") == declared


def test_every_stored_stage_has_a_name_of_its_own():
    names = [stage.name for stage in STAGES.values() if stage.name is not None]
    assert len(names) == len(set(names))


def test_the_walk_names_each_stop_once_and_files_that_exist():
    stops = rows("A walk: one sample from shard to score")
    assert len(stops) > 10
    for column in (0, 1):
        named = [stop[column] for stop in stops]
        assert len(named) == len(set(named))
    files = [path for stop in stops for cell in stop for path in re.findall(r"`([\w/]+\.py)`", cell)]
    assert [path for path in files if not (ROOT / path).is_file()] == []


def test_the_walk_names_objects_of_its_files():
    for _, file, text in rows("A walk: one sample from shard to score"):
        source = (ROOT / file.strip("`")).read_text()
        objects = re.findall(r"`(\w+)`", text)
        assert [one for one in objects if not re.search(rf"^\s*(?:class|def) {one}\b", source, re.M)] == []
