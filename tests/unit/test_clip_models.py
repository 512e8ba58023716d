"""Model specifications: what they build, save, load and refuse."""

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.clip import OpenCLIP, SmallCLIP, load_model
from experiments.clip.channel_statistics import STATISTICS
from experiments.clip.small_tower import Convolution

TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
TEXTS = ["a red star", "an old kite"]


CONF = Path(__file__).parents[2] / "conf"


@pytest.mark.parametrize(
    ("choice", "architecture", "width", "million"), [("rn50", "RN50", 1024, 102), ("vit_b16", "ViT-B-16", 512, 150)]
)
def test_the_papers_models_have_the_papers_dimensions(choice, architecture, width, million):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose(f"model/{choice}").model)
    assert config == {**config, "name": architecture, "size": 224, "mean": "auto", "std": "auto"}
    assert config.pop("_target_") == "experiments.clip.OpenCLIP"
    model = OpenCLIP(**config).build(())
    model.clip.to("meta")  # shapes without arithmetic
    image = model.clip.encode_image(torch.empty(2, 3, 224, 224, device="meta"))
    text = model.clip.encode_text(torch.empty(2, 77, dtype=torch.long, device="meta"))
    assert image.shape == text.shape == (2, width)
    assert (model.spec.mean, model.spec.std) == (None, None)
    blocks = model.clip.transformer.resblocks
    assert len(blocks) == 12
    assert {(block.attn.embed_dim, block.attn.num_heads) for block in blocks} == {(512, 8)}
    assert model.clip.positional_embedding.shape == (77, 512)
    assert model.clip.token_embedding.num_embeddings == 49408
    assert model.tokenizer(["a banana"]).shape == (1, 77)
    assert round(sum(p.numel() for p in model.clip.parameters()) / 1e6) == million


@pytest.fixture
def published(tmp_path):
    """A folder as open_clip publishes models, with statistics of its own; its weights."""
    folder = tmp_path / "published"
    folder.mkdir()
    content = {"model_cfg": TINY, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    clip = open_clip.CLIP(**TINY)
    torch.save(clip.state_dict(), folder / "open_clip_model.pth")
    return folder, clip


def embeddings(model):
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8))
    model.clip.eval()
    with torch.inference_mode():
        return model.image(model.pixels(images)), model.text(TEXTS)


def assert_same(one, other):
    for a, b in zip(embeddings(one), embeddings(other), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tower", [{}, {"patch": 16}, {"blocks": OmegaConf.create([1, 1, 1, 1])}])
def test_small_clip_is_saved_and_loaded(tower, tmp_path):
    spec = SmallCLIP(embed_dim=16, text_width=32, text_heads=2, mean=(0.5,) * 3, std=(0.25,) * 3, **tower)
    model = spec.build(TEXTS)
    model.save(tmp_path)
    again = load_model(tmp_path)
    assert tuple(again.spec.mean) == (0.5,) * 3
    assert_same(model, again)


def test_small_clip_has_one_tower():
    with pytest.raises(ValueError, match=r"model.patch=4 .* model.blocks=\[1, 1, 1, 1\]"):
        SmallCLIP(patch=4, blocks=[1, 1, 1, 1])


def test_published_models_bring_their_weights_and_statistics(published, tmp_path):
    folder, clip = published
    spec = OpenCLIP(name=f"local-dir:{folder}", size=32)
    assert (spec.trains, len(spec.files)) == (False, 2)
    model = spec.build(())
    assert model.spec.mean == (0.1, 0.2, 0.3)
    assert model.spec.std == (0.4, 0.5, 0.6)
    assert torch.equal(model.clip.visual.conv1.weight, clip.visual.conv1.weight)
    saved = tmp_path / "stage"
    saved.mkdir()
    model.save(saved)
    for file in folder.iterdir():  # the stage does not need the place that the weights came from
        file.unlink()
    again = load_model(saved)
    assert again.spec.mean == [0.1, 0.2, 0.3]
    assert_same(model, again)


def test_open_clip_opens_what_was_saved(published, tmp_path):
    folder, _ = published
    saved = tmp_path / "stage"
    saved.mkdir()
    model = OpenCLIP(name=f"local-dir:{folder}", size=32).build(())
    model.save(saved)
    clip, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{saved}")
    assert torch.equal(clip.token_embedding.weight, model.clip.token_embedding.weight)
    assert tuple(preprocess.transforms[-1].mean) == (0.1, 0.2, 0.3)


def test_statistics_are_applied_by_the_model(published):
    folder, _ = published
    model = OpenCLIP(name=f"local-dir:{folder}", size=32).build(())
    x = torch.full((1, 3, 32, 32), 0.5)
    expected = [(0.5 - mean) / std for mean, std in zip((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), strict=True)]
    assert model.standardise(x)[0, :, 0, 0].tolist() == pytest.approx(expected)
    plain = OpenCLIP(name=f"local-dir:{folder}", size=32, mean=None, std=None).build(())
    assert plain.standardise(x) is x


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (None, None)),
        ({"mean": "openai"}, STATISTICS["openai"]),
        ({"mean": "inception", "std": [1, 1, 1]}, ((0.5,) * 3, (1.0,) * 3)),
        ({"mean": [0, 0, 0], "std": [1, 1, 1]}, (None, None)),
        ({"mean": None}, (None, None)),
    ],
)
def test_statistics_by_name_or_number(given, expected):
    assert OpenCLIP(**given)._statistics((None, None)) == expected


def test_a_checkpoint_is_used_as_it_is_unless_it_is_fine_tuned(tmp_path):
    file = tmp_path / "weights.pt"
    torch.save({}, file)
    spec = OpenCLIP(name="RN50", checkpoint=str(file))
    assert (spec.trains, spec.files) == (False, (str(file),))
    assert OpenCLIP(name="RN50", checkpoint=str(file), finetune=True).trains
    assert OpenCLIP(name="RN50").trains


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "RN51"}, r"model\.name must be one of .* got 'RN51'; nearest: RN50"),
        ({"checkpoint": "nowhere.pt"}, r"model\.checkpoint must be a file, but there is no 'nowhere\.pt'"),
        ({"pretrained": "mine"}, r"model\.pretrained must be a tag of RN50 \(openai, .*got 'mine'; a file goes to"),
        ({"name": "hf-hub:a/b", "pretrained": "openai"}, r"model\.pretrained must be left out"),
        ({"name": "local-dir:nowhere"}, r"the folder 'nowhere' holds no open_clip_config\.json"),
        ({"finetune": True}, r"model\.finetune needs weights to start from"),
        ({"mean": "coco"}, r"model\.mean must be three numbers, null or one of auto, openai, .*got 'coco'"),
        ({"mean": [0.5, 0.5, 0.5]}, r"model\.std must be given"),
        ({"mean": [0.5], "std": [0.5]}, r"model\.mean must be three numbers, got \[0\.5\]"),
        ({"mean": None, "std": [1, 1, 1]}, r"model\.mean and model\.std go together"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0, 1, 1]}, r"model\.std must be above 0 and finite, got \[0, 1, 1\]"),
        ({"mean": [float("nan"), 0, 0], "std": [1, 1, 1]}, r"model\.mean must be finite, got \[nan, 0, 0\]"),
        ({"size": 0}, r"model\.size must be at least 1, got 0"),
    ],
)
def test_bad_specifications_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        OpenCLIP(**options)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_towers_product_is_the_convolution_and_so_are_its_gradients(layout):
    torch.manual_seed(0)
    convolution = Convolution(6, 5).to(memory_format=layout).double()
    x = torch.randn(3, 6, 2, 2, dtype=torch.float64, requires_grad=True)
    quick, plain = convolution(x), torch.nn.Conv2d.forward(convolution, x)
    pull = torch.randn_like(plain)
    torch.testing.assert_close(quick, plain)
    for one, other in zip(
        torch.autograd.grad(quick, [x, convolution.weight], pull),
        torch.autograd.grad(plain, [x, convolution.weight], pull),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
