"""What every detector must do, for each file in conf/detector."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from detect import Detector, DetectorInputs, Embeddings, LocalDetector
from detect.clip_score import cosine

FOLDER = Path(__file__).parents[2] / "conf" / "detector"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.yaml"))
ROOT = {
    "seed": 0,
    "scale": {"k": 5, "wide_k": 8},
    "neighbours": {
        "scope": "full",
        "batch_size": 64,
        "modality": "image",
        "convention": "published",
        "backend": "auto",
    },
}
DRAW_BY_SAMPLE = ("bdetclip", "safeclip", "subspace")  # random numbers that do not depend on the order of the rows
OPTIONAL = {"pyod": "pyod", "cleanlab": "cleanlab"}  # detector -> package of the extra `detectors`
CHEAPER = {"cognitive_distillation": {"steps": 20, "gamma": 0.01, "beta": 1}, "forest": {"trees": 30}}
CHEAPER |= {name: {"k": 20, "narrow": 5, "batch_size": 64} for name in ("drift_pursuit", "multiscale", "pursuit")}
N, D, PLANTED = 96, 16, 3


@cache
def detector(name, **changes) -> Detector:
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name], reason="optional extra `detectors`")
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    local = OmegaConf.load(FOLDER / "_local.yaml") if "_local@_here_" in config.pop("defaults", []) else {}
    chosen = OmegaConf.merge(local, config, CHEAPER.get(name, {}), changes)
    return instantiate(OmegaConf.create(ROOT | {"chosen": chosen}).chosen, _convert_="all")


class Encoder:
    """Texts: sums of fixed vectors of words.  Images: all their pixels, or a corner of those that carry a mark."""

    def text(self, texts):
        return torch.stack([sum(self.word(word.strip(",")) for word in text.split()) for text in texts])

    @staticmethod
    def word(word):
        return torch.randn(D, generator=torch.Generator().manual_seed(sum(map(ord, word))))

    def image(self, x):
        corner = x[:, :, :2, :2].flatten(1).repeat(1, 16)
        marked = (x[:, 0, 0, 0] > 1)[:, None]  # the planted images carry a mark
        return 10 * torch.where(marked, corner, x.flatten(1))


WORDS = ["boat", "cat", "tree", "bird", "lamp", "shoe"]


@cache
def inputs(name) -> DetectorInputs:
    """Samples of three kinds, the last PLANTED of which are suspicious in every way that a detector may look at."""
    rng = np.random.default_rng(0)
    kinds = np.arange(N) % len(WORDS)
    places = ["near", "far", "over"]
    captions = [f"the {WORDS[kind]} {places[i % 7 % 3]} {places[i % 5 % 3]}" for i, kind in enumerate(kinds)]
    title = torch.stack([Encoder.word(word) for word in WORDS]).numpy()
    text = title[kinds] + 0.1 * rng.standard_normal((N, D))
    image = title[kinds] + 0.3 * rng.standard_normal((N, D))
    planted = slice(N - PLANTED, N)
    image[planted] = -3 * image[planted] + 2 * rng.standard_normal((PLANTED, D))
    if name == "bdetclip":  # close to what all prompts have in common, not to what captions say of a thing
        image[planted] = sum(Encoder.word(word) for word in ["a", "photo", "of", "a"]).numpy()
    if name == "slof_text":
        text[planted] = -3 * text[planted] + 2 * rng.standard_normal((PLANTED, D))
    losses = 2 + rng.random((N, 12))
    losses[planted] = np.linspace(3, 0.1, 12) if name == "loss_slope" else 0.1
    pixels = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pixels[planted, :, 0, 0] = 1.5
    embeddings = Embeddings(np.arange(N) + 100, image.astype(np.float32), text.astype(np.float32))
    agreement = cosine(embeddings)[:, None] - 0.1 * rng.random((N, 5))
    agreement[planted, 2] -= 0.9
    drift = 0.1 * rng.random((N, 3))
    drift[planted, 1] = 0.8
    moved = image + 0.02 * np.random.default_rng(1).standard_normal((N, D))
    moved[planted] = title[(kinds[planted] + 3) % len(WORDS)]
    earlier = Embeddings(embeddings.ids, moved.astype(np.float32), embeddings.text)
    return DetectorInputs(
        embeddings, captions, losses, Encoder(), lambda rows: pixels[rows], agreement, drift, earlier
    )


def test_every_file_is_a_detector_of_the_package():
    assert {"kdist", "lid", "slof", "lof", "dao", "forest", "clip_score", "norm"} <= set(NAMES)
    for name in NAMES:
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith(f"# @package detector.{name}\n"), name
        assert OmegaConf.load(FOLDER / f"{name}.yaml")["_target_"].startswith("detect."), name


@pytest.mark.parametrize("name", NAMES)
def test_higher_is_more_suspicious(name):
    scores = detector(name).score(inputs(name))
    assert scores.shape == (N,)
    assert scores.dtype == np.float64
    planted, clean = scores[-PLANTED:], scores[:-PLANTED]
    assert (planted[:, None] > clean[None]).mean() > 0.95


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_and_inputs_are_left_alone(name):
    given = inputs(name)
    before = [given.embeddings.image.copy(), given.embeddings.text.copy(), given.losses.copy()]
    state = torch.get_rng_state(), json.dumps(np.random.get_state()[1].tolist())  # noqa: NPY002  that it is not used
    first = detector(name).score(given)
    np.testing.assert_array_equal(first, detector(name).score(given))
    for old, new in zip(before, [given.embeddings.image, given.embeddings.text, given.losses], strict=True):
        np.testing.assert_array_equal(old, new)
    assert torch.equal(state[0], torch.get_rng_state())
    if name not in OPTIONAL:
        assert state[1] == json.dumps(np.random.get_state()[1].tolist())  # noqa: NPY002


@pytest.mark.parametrize("name", NAMES)
def test_scores_of_duplicates_are_finite(name):
    given = inputs(name)
    image, text = given.embeddings.image.copy(), given.embeddings.text.copy()
    image[:40], text[:20] = image[0], text[0]  # more than k
    embeddings = Embeddings(given.embeddings.ids, image, text)
    scores = detector(name).score(replace(given, embeddings=embeddings))
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", NAMES)
def test_missing_evidence_is_named(name):
    made = detector(name)
    for missing in sorted(made.needs):
        given = inputs(name)
        embeddings = given.embeddings if missing != "text" else Embeddings.of(given.embeddings.image)
        parts = {
            key: getattr(given, key)
            for key in ("captions", "losses", "encoder", "images", "views", "drift", "earlier")
            if key != missing
        }
        with pytest.raises(ValueError, match=f"{type(made).__name__} needs {missing}, and none was given"):
            made.score(DetectorInputs(embeddings, **parts))


@pytest.mark.parametrize("name", NAMES)
def test_row_order_makes_no_difference(name):
    given = inputs(name)
    order = np.random.default_rng(1).permutation(N)
    moved = DetectorInputs(
        Embeddings(given.embeddings.ids[order], given.embeddings.image[order], given.embeddings.text[order]),
        [given.captions[i] for i in order],
        given.losses[order],
        given.encoder,
        lambda rows: given.images(order[rows]),
        given.views[order],
        given.drift[order],
        Embeddings(given.embeddings.ids[order], given.earlier.image[order], given.earlier.text[order]),
    )
    made = detector(name)
    if hasattr(made, "seed") and not isinstance(made, LocalDetector) and name not in DRAW_BY_SAMPLE:
        pytest.skip("draws random numbers row by row")
    expected = detector(name).score(given)[order]
    np.testing.assert_allclose(detector(name).score(moved), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_only_detectors_that_use_length_can_normalise(name):
    made = detector(name)
    assert made.norm_sensitive == hasattr(made, "normalise")
    if made.norm_sensitive:
        given = inputs(name)
        long = given.embeddings.image * np.linspace(1, 9, N)[:, None].astype(np.float32)
        other = replace(given, embeddings=Embeddings(given.embeddings.ids, long, given.embeddings.text))
        same = detector(name, normalise=True)
        np.testing.assert_allclose(same.score(other), same.score(given), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_local_detectors_take_every_scope_and_convention(name):
    made = detector(name)
    if not isinstance(made, LocalDetector):
        pytest.skip("not a local detector")
    given = inputs(name)
    for changes in (
        {"scope": "batch", "batch_size": 40},
        {"modality": "joint"},
        {"modality": "text"},
        {"scope": "batch", "batch_size": 40, "modality": "pair"},
        {"scope": "batch", "batch_size": 40, "modality": "joint"},
        {"convention": "paper_code", "scope": "batch", "batch_size": 40, "modality": "image"},
    ):
        if "convention" in changes and type(made).paper_code_score is LocalDetector.paper_code_score:
            with pytest.raises(InstantiationException, match="has no convention 'paper_code': the public code"):
                detector(name, **changes)
            continue
        assert np.isfinite(detector(name, **changes).score(given)).all(), changes
