"""A mistyped word on the command line is answered with the choices there are."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from experiments.pipeline import config

FOLDER = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["sed=1"], "sed: there is no 'sed'; did you mean 'seed'?"),
        (["attack=badnet"], "attack=badnet: there is no 'badnet'; did you mean 'badnets'?"),
        (["detector=[slof,doa]"], "detector=doa: there is no 'doa'; did you mean 'dao'?"),
        (["detector=[slof]", "detector.slof.kk=3"], "detector.slof.kk: there is no 'kk'; did you mean 'k'?"),
        (["detector=[slof]", "detector.dao.k=3"], "detector.dao.k: there is no 'dao' (known here are slof)"),
        (["attack=sig", "train.epoch=3"], "train.epoch: there is no 'epoch'; did you mean 'epochs'?"),
    ],
)
def test_unknown_words_get_their_choices(arguments, answer):
    config.register()
    found = config.explain(arguments, FOLDER)
    assert found is not None
    assert found.startswith(answer)


def test_known_words_need_no_explanation():
    config.register()
    known = [
        "data=webdataset",
        "data.shards=x",
        "attack=sig",
        "seed=3",
        "detector=[slof,dao]",
        "detector.dao.k=4",
        "hydra.run.dir=x",
        "--help",
        "-m",
    ]
    assert config.explain(known, FOLDER) is None


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("data.shards=a/{00000..00007}.tar", "a/{00000..00007}.tar"),
        ("data.shards={00000..00007}.tar", "{00000..00007}.tar"),
        ("data.shards='a/{00000..00007}.tar'", "a/{00000..00007}.tar"),
        ("data.shards=/my sets/{a..c}/{0..7}.tar", "/my sets/{a..c}/{0..7}.tar"),
        ("data.shards=s3://b/{0..7}.tar", "s3://b/{0..7}.tar"),
        ("data.shards=[a/{0..3}.tar, b/{0..7}.tar,c]", ["a/{0..3}.tar", "b/{0..7}.tar", "c"]),
        ("neighbours={scope: batch, batch_size: 100}", {"scope": "batch", "batch_size": 100}),
        ("data.shards=${oc.env:HOME}/x", "${oc.env:HOME}/x"),
    ],
)
def test_brace_patterns_reach_hydra_whole(argument, expected):
    override = OverridesParser.create().parse_override(config.quote_patterns(argument))
    value = override.value()
    assert getattr(value, "text", value) == expected


def test_brace_patterns_can_be_swept_over():
    override = OverridesParser.create().parse_override(
        config.quote_patterns("data.shards=a/{0..3}.tar,b/{0..7}.tar")
    )
    assert override.is_sweep_override()
    assert config.quote_patterns("--config-dir=a/{0..3}") == "--config-dir=a/{0..3}"
