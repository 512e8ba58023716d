"""Agreement of two checkpoints: the overlap itself, what is refused, and the second training that it needs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from pipeline_example import runner

from detect import Agreement, DetectorInputs, Embeddings, find_neighbours
from experiments.pipeline.earlier_model import check_earlier, half_as_long
from experiments.pipeline.evaluation import run

RNG = np.random.default_rng(0)
NOW, THEN = RNG.standard_normal((2, 60, 4)).astype(np.float32)
IDS = np.arange(60) + 7
TINY = [
    "data.pairs=200",
    "data.test_per_class=2",
    "data.classes=4",
    "train.batch_size=50",
    "train.warmup_epochs=0.2",
    "logger=disabled",
    "runtime.workers=1",
    "attack.rate=0.05",
    "normalise=[true]",
    "scale.k=4",
    "neighbours.batch_size=100",
]


def compared(**settings):
    return Agreement(k=5, **settings).score(DetectorInputs(Embeddings(IDS, NOW), earlier=Embeddings(IDS, THEN)))


def nearest(x, k):
    distances = np.linalg.norm(x[:, None].astype(np.float64) - x, axis=2)
    np.fill_diagonal(distances, np.inf)
    return [set(row) for row in np.argsort(distances, axis=1)[:, :k]]


def test_it_is_the_share_of_neighbours_that_are_not_shared():
    expected = [1 - len(a & b) / 5 for a, b in zip(nearest(NOW, 5), nearest(THEN, 5), strict=True)]
    np.testing.assert_allclose(compared(), expected)
    assert 0 < np.mean(expected) < 1


def test_both_models_search_in_the_same_batches():
    """A model that agrees with itself does so in every scope, also where a last batch is filled up."""
    same = DetectorInputs(Embeddings(IDS, NOW), earlier=Embeddings(IDS, NOW))
    for size in (20, 25, 50):
        assert (Agreement(k=5, scope="batch", batch_size=size).score(same) == 0).all()
    assert (compared(scope="batch", batch_size=20) > 0).any()


def test_a_wider_table_serves_it():
    inputs = DetectorInputs(Embeddings(IDS, NOW), earlier=Embeddings(IDS, THEN))
    made = Agreement(k=5)
    table = find_neighbours(inputs.embeddings, 20, made.search)
    np.testing.assert_array_equal(made.score_neighbours(table, inputs), compared())


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="scope must be full or batch"):
        Agreement(scope="reference")
    with pytest.raises(ValueError, match="Agreement needs earlier, and none was given"):
        Agreement(k=5).score(NOW)
    for others in (Embeddings(IDS[::-1].copy(), THEN), Embeddings(IDS[:50], THEN[:50])):
        with pytest.raises(ValueError, match="the same samples as the embeddings, in the same order"):
            Agreement(k=5).score(DetectorInputs(Embeddings(IDS, NOW), earlier=others))


@pytest.mark.parametrize(
    ("epochs", "warmup", "half"),
    [(4, 0.3, (2, 0.3)), (32, 4.25, (16, 4.25)), (8, 4.25, (4, 2.0)), (5, 0, (2, 0)), (2, 1, (1, 0.5))],
)
def test_the_earlier_model_has_half_the_epochs(epochs, warmup, half):
    made = runner(f"train.epochs={epochs}", f"train.warmup_epochs={warmup}").experiment
    assert half_as_long(made) == {"train": {"epochs": half[0], "warmup_epochs": half[1]}}


def test_a_run_without_such_a_model_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"train\.epochs must be at least 2, got 1"):
        runner("detector=[slof,agreement]", "train.epochs=1")
    runner("detector=[slof]", "train.epochs=1")
    published = SimpleNamespace(model_spec=SimpleNamespace(trains=False), detectors={"mine": Agreement()})
    with pytest.raises(ValueError, match=r"detector=mine .* was not trained here; leave the detector out"):
        check_earlier(published)


def test_a_run_trains_and_embeds_the_half_model_once(tmp_path):
    made = runner(*TINY, "train.epochs=2", "detector=[agreement,slof]", f"runtime.store={tmp_path}")
    result = run(made)
    assert result.tally.failed == 0
    epochs = [json.loads(m.read_text())["config"]["training"]["epochs"] for m in tmp_path.glob("train/*/meta.json")]
    assert sorted(epochs) == [1, 2]
    metas = {m["config"]["settings"]["_target_"]: m for m in map(_read, tmp_path.glob("score/*/meta.json"))}
    own = made.key("embeddings")
    assert metas["detect.SLOF"]["inputs"]["embed"] == own
    inputs = metas["detect.Agreement"]["inputs"]
    assert inputs["embed"] == own
    assert inputs["earlier.embed"] != own
    assert (tmp_path / "embed" / inputs["earlier.embed"]).is_dir()


def test_the_key_follows_the_earlier_model():
    def keys(*overrides):
        made = runner("detector=[agreement,slof]", "normalise=[true]", *overrides)
        return [made.key("scores", spec=spec) for spec in made.experiment.specs()]

    plain, longer = keys(), keys("train.epochs=5")  # both have a half model of two epochs
    assert not set(plain) & set(longer)
    assert keys() == plain


def _read(file):
    return json.loads(file.read_text())
