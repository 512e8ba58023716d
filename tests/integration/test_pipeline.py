"""The whole pipeline on a tiny setting: what is computed, what is reused, what is refused."""

import json
import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.clip import SmallCLIP
from experiments.pipeline import config as schema
from experiments.pipeline.evaluation import _cell, run
from experiments.pipeline.rows import RunMetadata
from experiments.pipeline.runner import Runner
from experiments.runtime.stopping import DiskFull

TINY = [
    "data.pairs=600",
    "data.test_per_class=2",
    "data.classes=4",
    "train.epochs=1",
    "scale.attacks.badnets.rate=0.02",
    "train.batch_size=100",
    "neighbours.batch_size=200",
    "scale.k=8",
    "scale.wide_k=8",
    "logger=disabled",
    "detector=[slof,dao,forest,norm]",
    "detector.forest.trees=10",
    "runtime.workers=1",
]


@pytest.fixture(scope="module")
def configure(tmp_path_factory):
    schema.register()
    store = tmp_path_factory.mktemp("store")
    conf = str(Path(__file__).parents[2] / "conf")

    def configured(*overrides):
        with initialize_config_dir(conf, version_base="1.3"):
            return compose("config", [*TINY, f"runtime.store={store}", *overrides])

    return configured


def computed(store):
    """Every finished stage's folder with the time of its completion."""
    return {meta.parent: meta.stat().st_mtime_ns for meta in store.root.glob("*/*/meta.json")}


@pytest.fixture(scope="module")
def first(configure):
    runner = Runner.of(configure())
    return runner, run(runner)


def test_every_cell_has_its_row_and_scores(first):
    _, result = first
    names = [(cell.row["detector"], cell.row["normalise"]) for cell in result.cells]
    assert names == [
        ("slof", True),
        ("slof", False),
        ("dao", True),
        ("dao", False),
        ("forest", True),
        ("forest", False),
        ("norm", None),
    ]
    for cell in result.cells:
        assert cell.row["status"] == "ok"
        assert cell.row["n"] == 600
        assert cell.row["n_poison"] == 12
        assert cell.scores.shape == (600,)
        order = np.argsort(cell.scores)
        ranks = np.empty(600)
        ranks[order] = np.arange(600)
        # Mann-Whitney: the mean rank of the poison gives the area under the ROC curve.
        poison = result.pairs.is_poison
        if len(np.unique(cell.scores)) == 600:
            auroc = (ranks[poison].mean() - 11 / 2) / 588
            assert cell.row["auroc"] == pytest.approx(auroc)


def test_second_run_computes_nothing(first, configure):
    runner, result = first
    before = computed(runner.store)
    again = run(Runner.of(configure()))
    assert computed(runner.store) == before
    assert json.dumps([cell.row for cell in again.cells]) == json.dumps([cell.row for cell in result.cells])


def test_another_k_trains_nothing(first, configure):
    runner, _ = first
    before = computed(runner.store)
    result = run(Runner.of(configure("detector.dao.k=16")))
    new = {path.parent.name for path in computed(runner.store).keys() - before.keys()}
    assert new == {"neighbours", "score", "evaluate"}
    assert result.cells[2].row["k"] == 16


def test_a_failed_cell_is_a_visible_hole(first, configure, monkeypatch):
    from detect import SLOF

    def fail(self, table):
        raise FloatingPointError("planted")

    monkeypatch.setattr(SLOF, "score_rows", fail)
    cells = run(Runner.of(configure("scale.k=9"))).cells
    assert [cell.row["status"] for cell in cells[:3]] == ["failed", "failed", "ok"]
    assert cells[0].row["error"] == "FloatingPointError: planted"
    assert cells[0].scores is None


def test_clean_training_is_another_model_of_the_same_poisons(first, configure):
    runner, _ = first
    control = Runner.of(configure("train_on=clean"))
    assert control.key("plan") == runner.key("plan")
    assert control.key("trained") != runner.key("trained")
    assert run(control).cells[0].row["train_on"] == "clean"
    assert [sorted(epoch) for epoch in control.value("trained").history] == [["epoch", "loss", "zero_shot_top1"]]


def test_a_clean_model_serves_all_attacks_on_one_target(configure):
    """Its vocabulary holds the target, so that another target is another model."""
    control, other, target = (
        Runner.of(configure("train_on=clean", *more)) for more in ([], ["attack=sig"], ["target=anchor"])
    )
    assert control.key("trained") == other.key("trained") != target.key("trained")
    assert control.key("embeddings") != other.key("embeddings")


def test_a_smaller_k_uses_the_wider_table(first, configure):
    runner, _ = first
    assert run(Runner.of(configure("detector.dao.k=12"))).cells[2].row["k"] == 12
    before = computed(runner.store)
    result = run(Runner.of(configure("detector.dao.k=5", "detector.slof.k=7")))
    assert [cell.row["k"] for cell in result.cells[:4]] == [7, 7, 5, 5]
    new = {path.parent.name for path in computed(runner.store).keys() - before.keys()}
    assert new == {"score", "evaluate"}


def test_training_on_some_rows_is_the_same_graph_with_one_input_replaced(first):
    runner, result = first
    ids = np.asarray(result.pairs.ids)
    half = runner.replace(train_ids=ids[:300])
    assert half.key("plan") == runner.key("plan")
    assert (
        len({half.key("trained"), runner.key("trained"), runner.replace(train_ids=ids[300:]).key("trained")}) == 3
    )
    assert half.value("trained").losses.shape == (300, 1)
    assert half.value("embeddings").image.shape[0] == 600


def test_only_rank_0_writes_the_hole_of_a_failed_cell(first, configure, monkeypatch):
    runner = Runner.of(configure())
    spec = next(iter(runner.experiment.specs()))
    metadata = RunMetadata.of(runner.experiment.labels, runner.value("measures"), runner.value("truth"))
    hole = runner.store.path(runner.recipe("cell", {"spec": spec})).with_suffix(".failed.json")
    monkeypatch.setenv("RANK", "1")  # of no group, so that every stage fails
    monkeypatch.setattr(runner, "entry", lambda *_, **__: 1 / 0)
    assert _cell(runner, spec, metadata).row["status"] == "failed"
    assert not hole.exists()


def test_what_every_cell_would_fail_of_ends_the_run(first, configure, monkeypatch):
    runner = Runner.of(configure())
    spec = next(iter(runner.experiment.specs()))
    metadata = RunMetadata.of(runner.experiment.labels, runner.value("measures"), runner.value("truth"))

    def full(*_, **__):
        raise DiskFull("planted")

    monkeypatch.setattr(runner, "entry", full)
    with pytest.raises(DiskFull):
        _cell(runner, spec, metadata)


def test_the_number_of_threads_is_part_of_the_keys_that_depend_on_it(configure, monkeypatch):
    def keys(*overrides):
        threads = torch.get_num_threads()
        runner = Runner.of(configure("runtime.device=cpu", *overrides))
        torch.set_num_threads(threads)
        return [runner.key(name) for name in ("data", "plan", "trained", "measures", "embeddings")]

    one, two, three = keys(), keys("runtime.threads=2"), keys("runtime.threads=3")
    assert [a == b for a, b in zip(one, two, strict=True)] == [True, True, False, False, False]
    assert not set(two[2:]) & set(three[2:])
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert keys("runtime.threads=null") == two
    monkeypatch.setattr(SmallCLIP, "trains", False)  # as a model that is only fetched
    fetched, by_two = keys(), keys("runtime.threads=2")
    assert [a == b for a, b in zip(fetched, by_two, strict=True)] == [True, True, True, False, False]


def test_without_an_attack_there_is_nothing_to_find(configure):
    cells = run(Runner.of(configure("attack=none"))).cells
    assert all(cell.row["n_poison"] == 0 for cell in cells)
    assert all(math.isnan(cell.row["auroc"]) for cell in cells)


def test_runtime_settings_are_no_part_of_a_key(first, configure):
    runner, _ = first
    other = Runner.of(configure("runtime.workers=2", "runtime.checkpoint_seconds=1"))
    assert other.key("embeddings") == runner.key("embeddings")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["attack.rate=0"], r"attack\.rate must be above 0"),
        (["attack.rate=1.5"], r"attack\.rate .*1\.5"),
        (["attack.rate=0.0001"], r"attack\.rate must poison at least one sample: 0\.0001 of 600"),
        (["detector.slof.k=200"], r"detector\.slof\.k must be below .*\(200\), got 200"),
        (["neighbours.scope=batches"], r"scope must be one of full, batch, reference, got 'batches'"),
        (["train.lr=0"], r"train\.lr must be above 0, got 0"),
        (
            ["+detector.abl.early=9"],
            r"detector.abl has settings but was not chosen; .*'detector=\[...,abl\]'",
        ),
        (["runtime.decoder=gpu"], r"runtime\.decoder must be pillow or device, got 'gpu'"),
        (["train_on=nothing"], r"train_on must be poisoned or clean, got 'nothing'"),
        (["model.size=64", "data.size=32"], r"data\.size must be the side of the model's input, 64, got 32"),
        (["train.batch_size=601"], r"train\.batch_size must not exceed the number of pairs \(600\), got 601"),
        (
            ["detector=[pyod,forest]"],
            r"detector=pyod needs the package pyod: .*/uv pip install -e '\.\[detectors\]'",
        ),
        (["data.pairs=many"], r"data\.pairs must be a whole number, got 'many'"),
        (["runtime.device=cuda:99"], r"runtime\.device=cuda:99 cannot be used: torch sees"),
    ],
)
def test_bad_values_are_refused_before_any_work(configure, overrides, message):
    if overrides == ["detector=[pyod,forest]"] and find_spec("pyod"):
        pytest.skip("PyOD is installed")
    with pytest.raises(Exception, match=message):
        Runner.of(configure(*overrides))


def test_unknown_names_are_refused(configure):
    with pytest.raises(Exception, match="badnet"):
        configure("attack=badnet")
    with pytest.raises(Exception, match="sed"):
        configure("sed=1")
    assert OmegaConf.is_config(configure())
