"""Detectors that look at more than embeddings, against formulas written out here and cases with a known answer."""

import json
import math

import numpy as np
import pytest
import torch

from detect import (
    ABL,
    BDetCLIP,
    Cleanlab,
    CLIPScore,
    CognitiveDistillation,
    DetectorInputs,
    Embeddings,
    PyOD,
    SafeCLIP,
    SubspaceDetection,
)
from detect.concepts import concepts

rng = np.random.default_rng(0)


def embeddings(n=6, d=8, text=True):
    draw = np.random.default_rng(1)
    image = draw.normal(size=(n, d)).astype(np.float32)
    return Embeddings(np.arange(n), image, draw.normal(size=(n, d)).astype(np.float32) if text else None)


class Words:
    """An encoder whose text embedding is the sum of fixed vectors of its words."""

    def __init__(self, d=8):
        self.d = d

    def text(self, texts):
        return torch.stack([sum(self._word(word) for word in text.lower().split()) for text in texts])

    def _word(self, word):
        return torch.randn(self.d, generator=torch.Generator().manual_seed(sum(map(ord, word))))


class Corner:
    """An encoder that sees the mean of the upper left 2 x 2 pixels, and nothing else (`small`), or all pixels."""

    def __init__(self, small):
        self.small = small

    def image(self, x):
        corner = x[:, :, :2, :2].flatten(1)
        whole = x.flatten(1)
        return 10 * torch.where(torch.as_tensor(self.small)[: len(x), None], corner.repeat(1, 16), whole)


def test_abl_is_minus_the_mean_loss_of_the_first_epochs():
    losses = np.array([[4.0, 2.0, 9.0], [1.0, 1.0, 0.0], [3.0, 3.0, 3.0]])
    inputs = DetectorInputs(embeddings(3), losses=losses)
    np.testing.assert_array_equal(ABL(epochs=2).score(inputs), [-3, -1, -3])
    np.testing.assert_array_equal(ABL(epochs=10).score(inputs), [-5, -2 / 3, -3])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (None, "ABL needs losses"),
        (np.ones((2, 3)), r"losses must be \(3, epochs\).*\(2, 3\)"),
        (np.array([[1.0], [math.nan], [1.0]]), "1 rows are not, the first of them 1"),
    ],
)
def test_abl_refuses_losses_that_do_not_fit(losses, message):
    with pytest.raises(ValueError, match=message):
        ABL().score(DetectorInputs(embeddings(3), losses=losses))


def test_safeclip_splits_two_groups_of_cosines():
    angles = np.concatenate([rng.normal(0.3, 0.02, 90), rng.normal(1.3, 0.02, 10)])
    image = np.stack([np.ones(100), np.zeros(100)], axis=1).astype(np.float32)
    text = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    scores = SafeCLIP().score(Embeddings(np.arange(100), image, text))
    assert (scores[:90] < 0.01).all()
    assert (scores[90:] > 0.99).all()
    np.testing.assert_allclose(
        CLIPScore().score(Embeddings(np.arange(100), image, text)), -np.cos(angles), rtol=1e-5
    )


def test_safeclip_refuses_cosines_that_are_all_alike():
    same = np.ones((5, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="two different image-text cosines"):
        SafeCLIP().score(Embeddings(np.arange(5), same, same))


def test_cognitive_distillation_finds_images_that_rest_on_a_corner():
    pixels = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small = np.array([False, True, False, False, True, False])
    detector = CognitiveDistillation(steps=60, gamma=0.01, beta=1, batch_size=6)
    inputs = DetectorInputs(embeddings(6), encoder=Corner(small), images=lambda rows: pixels[rows])
    scores = detector.score(inputs)
    assert scores[small].min() > scores[~small].max() + 1
    assert (scores >= -64).all()
    assert (scores <= 0).all()


def test_cognitive_distillation_leaves_weights_without_gradient():
    layer = torch.nn.Linear(12, 4)

    class Encoder:
        def image(self, x):
            return layer(x.flatten(1))

    inputs = DetectorInputs(embeddings(3), encoder=Encoder(), images=lambda rows: torch.rand(len(rows), 3, 2, 2))
    CognitiveDistillation(steps=2).score(inputs)
    assert layer.weight.grad is None


CAPTIONS = [
    "a red boat on water",
    "a blue boat",
    "one old tree",
    "tree by the road",
    "a cat",
    "a cat asleep",
    "rain",
]


def test_concepts_come_from_the_captions():
    found = {concept.name: concept for concept in concepts(CAPTIONS * 3, number=3, texts=2)}
    assert set(found) == {"boat", "cat", "tree"}
    assert set(found["boat"].related) == {"a red boat on water", "a blue boat"}
    for name, concept in found.items():
        assert all(text.startswith(f"a photo of a {name}, ") for text in concept.perturbed)
        assert all(text.count(name) == 1 for text in concept.perturbed)


def test_concepts_from_a_file(tmp_path):
    path = tmp_path / "prompts.json"
    texts = {
        "boat": {"related": ["a ship"], "perturbed": ["boat, rain"]},
        "cat": {"related": [], "perturbed": ["x"]},
    }
    path.write_text(json.dumps(texts))
    with pytest.raises(ValueError, match="concept 'cat' needs at least one related"):
        concepts([], str(path))
    with pytest.raises(ValueError, match="at least 2 concepts are needed, got 0 from the captions"):
        concepts(["rain"])


def test_bdetclip_is_the_sum_of_differences_of_cosines(tmp_path):
    texts = {
        "boat": {"related": ["a ship", "sails"], "perturbed": ["boat, rain"]},
        "cat": {"related": ["pet"], "perturbed": ["cat, snow"]},
    }
    (tmp_path / "p.json").write_text(json.dumps(texts))
    x, encoder = embeddings(7), Words()

    def direction(part):
        units = [(v / v.norm()).double() for v in encoder.text(part)]
        mean = sum(units) / len(units)
        return (mean / mean.norm()).numpy()

    unit = x.image / np.linalg.norm(x.image, axis=1, keepdims=True)
    omega = sum(unit @ direction(t["related"]) - unit @ direction(t["perturbed"]) for t in texts.values())
    scores = BDetCLIP(prompts=str(tmp_path / "p.json")).score(DetectorInputs(x, captions=CAPTIONS, encoder=encoder))
    np.testing.assert_allclose(scores, -omega, atol=1e-6)


def test_subspace_is_low_near_the_variants_and_high_off_them():
    encoder = Words(16)
    variants = encoder.text(["a red boat on water", "a blue boat"]).double()
    title = encoder.text(["a photo of a boat"])[0].double()
    near = torch.nn.functional.normalize(variants, dim=1).mean(dim=0)
    off = torch.nn.functional.normalize(title, dim=0) * 2 - near  # close to the text, away from its variants
    image = torch.stack([near, off]).float().numpy()
    x = DetectorInputs(Embeddings.of(image), captions=CAPTIONS, encoder=encoder)
    scores = SubspaceDetection(number=3, texts=2).score(x)
    assert scores[1] > scores[0] + 0.1


def test_subspace_region_stays_in_the_span_of_its_texts():
    draw = np.random.default_rng(0)
    title, variants = draw.normal(size=12), draw.normal(size=(3, 12))
    region = SubspaceDetection(variance=1.0, samples=5).region(title, variants, draw)
    basis = np.linalg.qr((variants - title).T)[0]
    apart = region - title
    np.testing.assert_allclose(apart @ basis @ basis.T, apart, atol=1e-9)
    same = np.repeat(title[None], 3, axis=0)
    np.testing.assert_allclose(SubspaceDetection(samples=2).region(title, same, draw), same[:2])


def test_pyod_by_name():
    pytest.importorskip("pyod", reason="optional extra `detectors`")
    x = rng.normal(size=(60, 4)).astype(np.float32)
    x[7] = 20
    for name in ("ECOD", "hbos", "KNN", "IForest"):
        assert PyOD(name=name).score(x).argmax() == 7
    assert PyOD(name="KNN", options={"n_neighbors": 3}).score(x)[7] == pytest.approx(
        np.sort(np.linalg.norm(x - x[7], axis=1))[3], rel=1e-5
    )
    with pytest.raises(ValueError, match="PyOD has no detector 'ECODD'; did you mean ECOD"):
        PyOD(name="ECODD").score(x)


def test_cleanlab_score():
    pytest.importorskip("cleanlab", reason="optional extra `detectors`")
    x = rng.normal(5, 1, size=(60, 6)).astype(np.float32)
    x[7] *= -1
    scores = Cleanlab(k=5).score(x)
    assert scores.argmax() == 7
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    apart = np.sort(1 - unit @ unit.T, axis=1)[:, 1:6].mean(axis=1)
    assert np.argsort(scores)[::-1][:5].tolist() == np.argsort(-apart)[:5].tolist()
    with pytest.raises(ValueError, match=r"k must lie in 1..59 for 60 samples"):
        Cleanlab(k=60).score(x)
