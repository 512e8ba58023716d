"""Checkpoints of several makers, and published weights without a network."""

import pickle
import time

import pytest
import torch
from safetensors.torch import save_file

from experiments.clip import checkpoints as weights
from experiments.clip.checkpoints import fit_names, load_checkpoint, read_state_dict, require_architecture


def small_clip(seed=0, custom=False):
    import open_clip

    torch.manual_seed(seed)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(16, vision, text)


def assert_same(one, other):
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def renamed(state, change):
    return {change(name): tensor for name, tensor in state.items()}


MAKERS = {
    "plain": lambda state: state,
    "open_clip's training script": lambda s: {
        "epoch": 3, "name": "run", "state_dict": renamed(s, "module.{}".format), "optimizer": {"state": {}},
    },
    "compiled, in a wrapper": lambda s: {"model": renamed(s, "module._orig_mod.model.{}".format), "epoch": 1},
    "model_state_dict": lambda s: {"model_state_dict": s, "scaler": {"scale": 1.0}},
}  # fmt: skip


@pytest.mark.parametrize("maker", MAKERS)
def test_checkpoints_are_read_whatever_they_are_wrapped_in(maker, tmp_path):
    clip = small_clip()
    torch.save(MAKERS[maker](clip.state_dict()), tmp_path / "weights.pt")
    other = small_clip(seed=1)
    load_checkpoint(other, tmp_path / "weights.pt")
    assert_same(clip, other)


def test_safetensors(tmp_path):
    clip, other = small_clip(), small_clip(seed=1)
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, tmp_path / "w.safetensors")
    load_checkpoint(other, tmp_path / "w.safetensors")
    assert_same(clip, other)


def test_two_towers_of_their_own_fit_into_open_clips_flat_names(tmp_path):
    """A separate text tower, as in the paper's state dicts, has open_clip's CustomTextCLIP for its relative."""
    towers = small_clip(custom=True)
    theirs = renamed(
        towers.state_dict(),
        lambda name: name.replace("visual.", "vision_model.", 1).replace("text.", "text_model.", 1),
    )
    torch.save({"state_dict": {f"module.{n}": t.half() for n, t in theirs.items()}}, tmp_path / "w.pt")
    flat = small_clip(seed=1)
    load_checkpoint(flat, tmp_path / "w.pt")
    assert torch.equal(flat.token_embedding.weight, towers.text.token_embedding.weight.half().float())
    assert torch.equal(flat.visual.conv1.weight, towers.visual.conv1.weight.half().float())


def test_flat_names_fit_into_a_text_tower():
    state = small_clip().state_dict()
    assert fit_names(state, list(small_clip(custom=True).state_dict())).keys() == (
        small_clip(custom=True).state_dict().keys()
    )


def test_pickled_code_is_never_run(tmp_path):
    class Planted:
        def __reduce__(self):
            return open, (str(tmp_path / "planted"), "w")

    torch.save({"state_dict": Planted()}, tmp_path / "evil.pt")
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Planted()))
    for name in ("evil.pt", "evil.pkl"):
        with pytest.raises(ValueError, match="is no file of plain tensors"):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "planted").exists()


def test_what_does_not_fit_is_named(tmp_path):
    state = small_clip().state_dict()
    del state["ln_final.bias"]
    state["extra"] = torch.zeros(1)
    state["token_embedding.weight"] = torch.zeros(51, 32)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"1 missing, such as ln_final\.bias; 1 unknown, .*extra; 1 of another shape"
    ):
        load_checkpoint(small_clip(), tmp_path / "w.pt")
    torch.save({"epoch": 1, "losses": [1.0]}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match=r"no weights found in .*epoch"):
        read_state_dict(tmp_path / "none.pt")


def test_unknown_architectures_list_the_nearest():
    with pytest.raises(ValueError, match=r"got 'RN500'; nearest: RN50"):
        require_architecture("RN500")
    with pytest.raises(ValueError, match=r"needs a repository or folder behind the colon"):
        require_architecture("hf-hub:")
    require_architecture("ViT-B/16")
    require_architecture("hf-hub:somebody/something")
    assert {"RN50", "ViT-B-16"} <= set(weights.architecture_names())
    assert (weights.native_size("ViT-L-14-336"), weights.native_size("hf-hub:a/b")) == (336, None)


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Nothing in the cache, and a hub whose port is closed."""
    from huggingface_hub import constants

    for proxy in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"name": "hf-hub:somebody/a_model_that_is_nowhere"}, "model.name=hf-hub:somebody/a_model_that_is_nowhere"),
        ({"name": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}, "model.pretrained=laion2b_s34b_b79k of ViT-B-32"),
    ],
)
def test_published_weights_without_a_network_are_refused_at_once(options, named, no_network):
    from huggingface_hub import constants

    from experiments.clip.model import OpenCLIP

    spec, begin = OpenCLIP(**options), time.monotonic()
    with pytest.raises(
        RuntimeError, match=f"{named} is not in this machine's cache and 127.0.0.1 cannot be reached"
    ):
        spec.build(())
    assert constants.HF_HUB_OFFLINE is False
    assert time.monotonic() - begin < 20  # huggingface_hub's own retries take 46 s


def test_offline_mode_is_said_to_be_the_cause(no_network, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"), weights.published("weights"):
        raise OSError("not found")
    assert constants.HF_HUB_OFFLINE is True
