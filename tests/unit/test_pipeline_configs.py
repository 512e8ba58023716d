"""Every file of conf/experiment: its header, what it sweeps, and that all of it can be built at both scales."""

import itertools
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from experiments.pipeline import config as schema
from experiments.pipeline.evaluation import run
from experiments.pipeline.runner import Runner

CONF = Path(__file__).parents[2] / "conf"
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
REPRODUCE = CONF.parent / "docs/reproduce.md"
# These stay within the models of another experiment: they may train one per attack, whatever they sweep.
WITHOUT_TRAINING = {"k", "scope", "modality", "lid_estimators"}
TINY = [
    "data.pairs=400",
    "data.test_per_class=1",
    "data.classes=4",
    "train.epochs=1",
    "train.batch_size=100",
    "train.warmup_epochs=0.3",
    "logger=disabled",
    "runtime.workers=1",
    "scale.attacks.badnets.rate=0.02",
]


@pytest.fixture(scope="module", autouse=True)
def hydra():
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def jobs(experiment, *overrides):
    """The overrides of each job, as Hydra's own sweeper makes them."""
    given = OverridesParser.create().parse_overrides([f"experiment={experiment}", *overrides])
    fixed = [override.input_line for override in given if not override.is_sweep_override()]
    hydra = compose("config", fixed, return_hydra_config=True).hydra
    params = OmegaConf.to_container(hydra.sweeper, resolve=True)["params"] or {}
    own = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return BasicSweeper.split_arguments(own + given, None)[0]


def corners(listed):
    """Few of the jobs that still hold every value of every axis."""
    kept, seen = [], set()
    for job in listed:
        if not seen.issuperset(job):
            kept.append(job)
            seen.update(job)
    return kept


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_header_says_command_cost_and_what_to_expect(experiment):
    lines = (CONF / f"experiment/{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines[1:]))
    starts = [match.group() for line in header if (match := re.match(r"#   [A-Z]\w+:", line))]
    assert starts == ["#   Command:", "#   Cost:", "#   Expect:"]
    assert any("Command:" in line and f"run.py experiment={experiment}" in line for line in header)
    cost = " ".join(header).partition("Cost:")[2].partition("Expect:")[0]
    assert "demo: " in cost
    assert "paper: " in cost


@pytest.mark.parametrize("scale", ["demo", "paper"])
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_job_can_be_built(experiment, scale):
    listed = jobs(experiment, f"scale={scale}")
    # Attacks and detectors are the same at both scales, but for their numbers.
    for job in corners(listed) if scale == "demo" else {tuple(listed[0]), tuple(listed[-1])}:
        config = compose("config", list(job))
        assert config.scale.name == scale
        attack = instantiate(config.attack)
        training = instantiate(config.train)
        assert 0 < training.warmup_epochs <= training.epochs
        for name, detector in config.detector.items():
            built = instantiate(detector)
            if config.neighbours.scope == "batch" and hasattr(built, "batch_size") and hasattr(built, "k"):
                assert built.k < built.batch_size, name
        pairs = config.data.get("pairs")
        if pairs:
            attack.check(pairs, config.model.size)


@pytest.mark.parametrize("experiment", ["cc12m", "redcaps"])
@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_the_data_set_is_the_one_named(experiment, scale):
    config = compose("config", jobs(experiment, f"scale={scale}")[0])
    assert config.data.shards.endswith(f"/{experiment}")
    assert config.data.subset == (20000 if scale == "demo" else None)


def test_command_line_has_the_last_word():
    listed = jobs("seeds", "seed=5", "attack=sig")
    assert [sorted(job) for job in listed] == [
        sorted([f"train_on={side}", "attack=sig", "seed=5", "experiment=seeds"]) for side in ("poisoned", "clean")
    ]


def test_every_experiment_is_in_the_guide():
    text = REPRODUCE.read_text()
    assert [name for name in EXPERIMENTS if f"experiment={name}" not in text] == []


@pytest.mark.parametrize("experiment", sorted(WITHOUT_TRAINING))
def test_axes_of_detection_train_nothing(experiment, tmp_path):
    """One model for one attack, embedded once, and every cell of every job computed: none is another's."""
    axes = {
        "k": ["scale.k=4,8"],
        "lid_estimators": ["scale.wide_k=4,8"],
        "scope": ["neighbours={scope: batch, batch_size: 100},{scope: batch, batch_size: 200},{scope: full}"],
    }
    tiny = [*TINY, f"runtime.store={tmp_path}"]
    tiny += {"k": [], "scope": ["scale.k=4", "scale.wide_k=4"]}.get(
        experiment, ["scale.k=4", "scale.wide_k=4", "neighbours.batch_size=200"]
    )
    listed = jobs(experiment, *tiny, "attack=badnets", *axes.get(experiment, []))
    assert len(listed) == {"k": 2, "scope": 3, "modality": 2, "lid_estimators": 4}[experiment]
    for job in listed:
        tally = run(Runner.of(compose("config", job))).tally
        assert tally.done == (2 if experiment == "lid_estimators" else 10)
        assert (tally.reused, tally.failed) == (0, 0)
    assert len(list(tmp_path.glob("train/*/meta.json"))) == 1
    assert len(list(tmp_path.glob("embed/*/meta.json"))) == 1


@pytest.mark.parametrize(
    ("overrides", "chosen"),
    [
        (["scale=paper"], "ClassFolders"),
        (["scale=paper", "eval=builtin"], "Builtin"),
        (["scale=paper", "task=scan"], "Builtin"),
        (["scale=demo"], "Builtin"),
    ],
)
def test_the_papers_scale_is_measured_on_imagenet(overrides, chosen):
    assert compose("config", overrides).eval._target_.endswith(chosen)


def test_imagenet_is_looked_for_beside_the_other_data(monkeypatch, tmp_path):
    monkeypatch.setenv("LOOKOUT_DATA", str(tmp_path))
    with pytest.raises(Exception, match=r"there is no folder '.*imagenet/val'; give eval.path=.*eval=builtin"):
        instantiate(compose("config", ["scale=paper"]).eval)
    (tmp_path / "imagenet/val/n07753592").mkdir(parents=True)
    (tmp_path / "imagenet/val/n01440764").mkdir()
    assert set(instantiate(compose("config", ["scale=paper"]).eval).names()) == {"banana", "tench"}


def test_the_papers_code_is_one_choice_at_every_scale():
    for scale in ("demo", "paper"):
        config = compose("config", ["protocol=paper_code", f"scale={scale}"])
        built = {name: instantiate(detector) for name, detector in config.detector.items()}
        assert list(config.normalise) == [False]
        local = [built[name] for name in ("kdist", "lid", "slof", "dao")]
        assert [detector.k for detector in local] == [16, 64, 16, 16]
        for detector in local:
            settings = (detector.convention, detector.modality, detector.scope, detector.batch_size)
            assert settings == ("paper_code", "joint", "batch", 2048)


def test_the_papers_code_takes_the_attacks_of_an_experiment_and_leaves_other_detectors_their_definition():
    config = compose("config", ["protocol=paper_code", "experiment=main_table", "attack=sig"])
    built = {name: instantiate(detector) for name, detector in config.detector.items()}
    conventions = [built[name].convention for name in ("slof", "lof", "tandem")]
    assert conventions == ["paper_code", "published", "published"]


DECIDES_THE_MODEL = re.compile(r"attack|seed|model|train")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_neighbouring_jobs_of_a_sweep_need_different_models(experiment):
    """Of a sweep's parameters the last varies fastest. Two jobs that need one model wait for one another."""
    params = (
        OmegaConf.load(CONF / f"experiment/{experiment}.yaml").get("hydra", {}).get("sweeper", {}).get("params")
    )
    values = OmegaConf.to_container(params or OmegaConf.create(), resolve=False)
    varied = [name for name, value in values.items() if "," in str(value) or "${" in str(value)]
    decides = [bool(DECIDES_THE_MODEL.match(name)) for name in varied]
    assert not any(decides) or decides[-1], f"{varied[-1]} varies fastest, and changes no model"
