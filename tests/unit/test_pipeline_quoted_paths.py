"""Paths with characters of Hydra's grammar reach Hydra as they were written."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.pipeline.config import quote_patterns


@pytest.mark.parametrize(
    "value",
    [
        "/a/b=c/0.tar",
        "/my sets (1)/0.tar",
        "~/x/*.tar",
        "x/[0-9][0-9].tar",
        "x/?.tar",
        "a.tar::b.tar",
        "b#1.tar",
        "x/{a,b}/0.tar",
        "it's/0.tar",
        "https://host/a.tar?x=1&y=2",
        "a=b/{00..07}_(x).tar",
        "bücher/0.tar",
        "/a!b@c+d^e|f/0.tar",
    ],
)
def test_paths_arrive_whole(value):
    override = OverridesParser.create().parse_override(quote_patterns(f"data.shards={value}"))
    found = override.value()
    assert getattr(found, "text", found) == value
    listed = OverridesParser.create().parse_override(quote_patterns(f"data.shards=[{value},b(2)/1.tar]"))
    assert [getattr(one, "text", one) for one in listed.value()] == [value, "b(2)/1.tar"]


@pytest.mark.parametrize(
    "argument",
    [
        "data.shards='/a/b=c/0.tar'",
        "detector=[slof,dao",
        "-m",
        "~data.shards",
        "task.remove.share=0.05",
        "x",
        "a=",
        "data.shards=${oc.env:HOME}/x",
        "neighbours={scope: batch}",
        "--config-dir=a(1)/b",
    ],
)
def test_what_hydra_reads_or_what_is_no_path_stays(argument):
    assert quote_patterns(argument) == argument


def test_paths_can_be_swept_over():
    override = OverridesParser.create().parse_override(quote_patterns("data.shards=a(1)/0.tar,b(2)/0.tar"))
    assert override.is_sweep_override()
    assert [one.text for one in override.value().list] == ["a(1)/0.tar", "b(2)/0.tar"]
