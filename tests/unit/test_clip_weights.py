"""Checkpoints of several makers, and published weights without a network."""

import argparse
import collections
import datetime
import pathlib
import pickle
import time
import zipfile

import numpy as np
import open_clip
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from experiments.clip.checkpoints import fit_names, load_checkpoint, published, read_state_dict
from experiments.clip.open_clip_metadata import (
    architecture_names,
    architecture_of,
    native_size,
    require_architecture,
)


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
        "epoch": 3,
        "name": "run",
        "state_dict": renamed(s, "module.{}".format),
        "optimizer": {"state": {}},
    },
    "compiled, in a wrapper": lambda s: {"model": renamed(s, "module._orig_mod.model.{}".format), "epoch": 1},
    "model_state_dict": lambda s: {"model_state_dict": s, "scaler": {"scale": 1.0}},
    "--siglip": lambda s: {"state_dict": renamed(s | {"logit_bias": torch.tensor(-10.0)}, "module.{}".format)},
    "arguments and NumPy beside the weights": lambda s: {
        "state_dict": s,
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("x")),
        "best": np.float64(0.5),
        "random": np.random.RandomState(0).get_state(),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "config": OmegaConf.create({"lr": 0.1, "layers": [1, "two", None]}),
        "at": datetime.datetime(2026, 1, 1),
    },
    "Lightning's buffers and average": lambda s: {
        "state_dict": renamed(s, "model.{}".format)
        | renamed(s, "model_ema.{}".format)
        | {
            "model_ema.decay": torch.tensor(0.99),
            "accuracy.tp": torch.ones(3),
            "loss.weight": torch.ones(2),
        },
        "loops": {},
        "hyper_parameters": {"lr": 0.1},
    },
    "an average alone": lambda s: {"model_ema": s, "epoch": 3},
    "the plain weights before their average": lambda s: {
        "state_dict_ema": {name: tensor + 1 for name, tensor in s.items()},
        "state_dict": s,
    },
    **{
        prefix: lambda s, prefix=prefix: renamed(s, f"{prefix}{{}}".format)
        for prefix in (
            "clip_model.",
            "net.",
            "backbone.",
            "student.encoder.",
            "module.model._orig_mod.clip.",
        )
    },
    "beside a head of its own": lambda s: renamed(s, "clip.{}".format) | {"head.weight": torch.zeros(2, 2)},
    "names of other towers under a prefix": lambda s: renamed(
        renamed(s, "clip_model.{}".format), lambda n: n.replace("clip_model.visual.", "clip_model.vision_model.")
    ),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_checkpoints_are_read_whatever_they_are_wrapped_in(maker, tmp_path):
    clip = small_clip()
    torch.save(MAKERS[maker](clip.state_dict()), tmp_path / "weights.pt")
    other = small_clip(seed=1)
    load_checkpoint(other, tmp_path / "weights.pt")
    if maker == "--siglip":
        assert other.logit_bias.item() == -10
        other.logit_bias = None
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


@pytest.mark.parametrize(
    "named", [("os", "system"), ("builtins", "eval"), ("torch.hub", "load"), ("numpy", "load")]
)
def test_what_a_checkpoint_may_not_name_is_said(named, tmp_path):
    pickled = b"\x80\x02}(X\x01\x00\x00\x00ac" + "\n".join(named).encode() + b"\nX\x04\x00\x00\x00true\x85Ru."
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", pickled)
        archive.writestr("w/version", "3\n")
    with pytest.raises(
        ValueError, match=rf"it names {'.'.join(named).removeprefix('builtins.')}, which is not run"
    ):
        read_state_dict(tmp_path / "w.pt")


def test_stand_ins_keep_nothing_of_what_lies_beside_the_weights(tmp_path):
    class Planted:
        def __reduce__(self):
            return np.dtype, (Inner(),)

    class Inner:
        def __reduce__(self):
            return argparse.Namespace, ({"a": 1},)

    torch.save({"state_dict": {"a": torch.ones(2)}, "beside": Planted()}, tmp_path / "w.pt")
    assert list(read_state_dict(tmp_path / "w.pt")) == ["a"]


def compressed(file):
    torch.save({"a": torch.zeros(100_000)}, file)
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def cut(file, kind="zip"):
    state = {"a": torch.zeros(5000)}
    if kind == "safetensors":
        save_file(state, file)
    else:
        torch.save(state, file, _use_new_zipfile_serialization=kind == "zip")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def scripted(file):
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(file))


OTHERS = {
    "w.pt": (lambda f: f.write_bytes(b""), "is empty"),
    "w.safetensors": (lambda f: f.write_bytes(b""), "is empty"),
    "zeros.pt": (lambda f: f.write_bytes(bytes(9000)), "begins with zeros only"),
    "pointer.pt": (
        lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "a Git LFS pointer",
    ),
    "pointer.safetensors": (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"), "a Git LFS"),
    "page.pt": (lambda f: f.write_text("\n <!DOCTYPE html><html>Sign in"), "an HTML page"),
    "page.bin": (lambda f: f.write_text("<HTML><body>404"), "an HTML page"),
    "error.pt": (lambda f: f.write_text('{"error": "not found"}'), "a JSON file"),
    "model.safetensors.index.json": (lambda f: f.write_text('{"weight_map": {"a": "b"}}'), "an index that lists"),
    "packed.pt": (lambda f: f.write_bytes(b"\x1f\x8b\x08" + bytes(50)), "a gzip archive"),
    "array.npz": (lambda f: np.savez(f, a=np.zeros(3)), "a zip archive without PyTorch's"),
    "array.npy": (lambda f: np.save(f, np.zeros(3)), "a NumPy array"),
    "cut.pt": (cut, "is cut short or damaged"),
    "cut legacy.pt": (lambda f: cut(f, "legacy"), "is cut short|no file of plain tensors"),
    "cut.safetensors": (lambda f: cut(f, "safetensors"), "is cut short or damaged: .* announces"),
    "header.safetensors": (
        lambda f: f.write_bytes((99).to_bytes(8, "little") + b"{" * 20),
        "header cannot be read",
    ),
    "words.safetensors": (lambda f: f.write_text("not tensors"), "is no safetensors file"),
    "bomb.pt": (compressed, "compressed zip archive"),
    "script.pt": (scripted, "a TorchScript program"),
    "wide.pt": (lambda f: torch.save({"a": torch.zeros(1).expand(10**12)}, f), "larger than its own data"),
    "sparse.pt": (lambda f: torch.save({"a": torch.zeros(9, 9).to_sparse()}, f), "not dense"),
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.filterwarnings("ignore")
def test_files_that_are_something_else_are_named_as_what_they_are(name, tmp_path):
    write, said = OTHERS[name]
    write(tmp_path / name)
    with pytest.raises(ValueError, match=said) as refusal:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path / name) in str(refusal.value)


def test_safetensors_are_known_by_their_content(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.bin")
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pt")
    assert torch.equal(read_state_dict(tmp_path / "model.bin")["a"], torch.ones(2))


@pytest.mark.parametrize("custom", [False, True])
@pytest.mark.parametrize(
    ("part", "tower"),
    [
        (lambda clip: {n: t for n, t in clip.state_dict().items() if n.startswith("visual.")}, "an image tower"),
        (lambda clip: clip.visual.state_dict(), "an image tower"),
        (lambda clip: renamed(clip.visual.state_dict(), "backbone.{}".format), "an image tower"),
        (lambda clip: {n: t for n, t in clip.state_dict().items() if not n.startswith("visual.")}, "a text tower"),
    ],
)
def test_a_single_tower_is_said_to_be_one(part, tower, custom, tmp_path):
    clip = small_clip(custom=custom)
    torch.save(part(clip), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"holds {tower} only; images and captions need both") as refusal:
        load_checkpoint(clip, tmp_path / "w.pt")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("visual.positional_embedding", torch.zeros(7), "1 of another shape, such as visual.pos"),
        ("visual.positional_embedding", torch.zeros(4, 32), "1 of another shape, such as visual.pos"),
        ("positional_embedding", torch.zeros(8, 33), "1 of another shape, such as pos"),
        ("positional_embedding", torch.zeros(()), "1 of another shape, such as pos"),
        ("ln_final.weight", torch.full((32,), torch.nan), "1 with NaN or infinite values, such as ln_final"),
        ("ln_final.weight", torch.ones(32, dtype=torch.int8), "1 of another type, such as ln_final"),
        ("logit_scale", torch.zeros(2), "1 of another shape, such as logit_scale"),
        ("text.ln_final.weight", torch.ones(32), "are both the model's 'ln_final.weight'"),
    ],
)
def test_tensors_that_are_no_weights_of_the_model(name, tensor, said, tmp_path):
    clip = small_clip()
    torch.save(clip.state_dict() | {name: tensor}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=said):
        load_checkpoint(clip, tmp_path / "w.pt")


def test_positions_are_interpolated_also_in_half_precision(tmp_path):
    clip = small_clip()
    state = {name: tensor.half() for name, tensor in clip.state_dict().items()}
    state["positional_embedding"] = torch.ones(16, 32).half()
    state["visual.positional_embedding"] = torch.ones(1 + 49, 32).half()
    torch.save(state, tmp_path / "w.pt")
    load_checkpoint(clip, tmp_path / "w.pt")
    assert torch.equal(clip.positional_embedding, torch.ones(8, 32))
    torch.testing.assert_close(clip.visual.positional_embedding, torch.ones(5, 32))


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


def test_built_in_descriptions_are_those_of_open_clip():
    for name in ("RN50", "ViT-B/16", "xlm-roberta-base-ViT-B-32"):
        assert architecture_of(name) == open_clip.get_model_config(name.replace("/", "-"))


def test_unknown_architectures_list_the_nearest():
    with pytest.raises(ValueError, match=r"got 'rn500'; nearest: RN50"):
        require_architecture("rn500")
    with pytest.raises(ValueError, match=r"got ''; nearest: none"):
        native_size("")
    with pytest.raises(ValueError, match=r"needs a repository or folder after the colon"):
        require_architecture("hf-hub:")
    require_architecture("ViT-B/16")
    require_architecture("hf-hub:somebody/something")
    assert {"RN50", "ViT-B-16"} <= set(architecture_names())
    assert (native_size("ViT-L-14-336"), native_size("hf-hub:a/b")) == (336, None)


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

    from experiments.clip import OpenCLIP

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
    with pytest.raises(RuntimeError, match="HF_HUB_OFFLINE is set"), published("weights"):
        raise OSError("not found")
    assert constants.HF_HUB_OFFLINE is True
