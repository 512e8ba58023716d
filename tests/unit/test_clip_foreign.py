"""Foreign model folders: nothing of them is run, nothing is read from elsewhere, sizes are bounded."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import open_clip
import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file

from experiments.clip import OpenCLIP, SmallCLIP, load_model
from experiments.clip.from_store import Trained
from experiments.clip.model_folder import RefusedModel, check_architecture, no_remote_code
from experiments.pipeline import config as schema
from experiments.pipeline.runner import Runner

CONF = Path(__file__).parents[2] / "conf"
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def folder(tmp_path):
    """A sound folder as open_clip publishes models."""
    place = tmp_path / "published"
    place.mkdir()
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY, "preprocess_cfg": {}}))
    torch.save(open_clip.CLIP(**TINY).state_dict(), place / "open_clip_model.pth")
    return place


@pytest.fixture
def saved(folder, tmp_path):
    """The same, brought into the store's form."""
    place = tmp_path / "saved"
    place.mkdir()
    OpenCLIP(name=f"local-dir:{folder}", size=32).build(()).save(place)
    return place


def change(place, part=None, name="open_clip_config.json", **values):
    """Put `values` into a JSON file of the folder, or into a part of its model_cfg."""
    file = place / name
    content = json.loads(file.read_text()) if file.exists() else {}
    inner = content
    for key in part or ():
        inner = inner.setdefault(key, {})
    inner.update(values)
    file.write_text(json.dumps(content))


TEXT = ("model_cfg", "text_cfg")
REMOTE = {
    "tokenizer_kwargs": (
        {"part": TEXT, "hf_tokenizer_name": "any", "tokenizer_kwargs": {"trust_remote_code": True}},
        "trust_remote_code",
    ),
    "text_cfg": ({"part": TEXT, "trust_remote_code": True}, "trust_remote_code"),
    "nested": ({"part": (*TEXT, "hf_model_config", "more"), "auto_map": {"AutoModel": "evil.Evil"}}, "auto_map"),
    "tokenizer_config": (
        {"name": "tokenizer_config.json", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}},
        "auto_map",
    ),
    "config": ({"name": "config.json", "auto_map": {"AutoConfig": "evil.Evil"}}, "auto_map"),
    "nested config": (
        {"name": "config.json", "part": ("text_config",), "auto_map": {"AutoModel": "evil.Evil"}},
        "auto_map",
    ),
    "in a list": (
        {"name": "processor_config.json", "parts": [{"auto_map": {"AutoTokenizer": "evil.Evil"}}]},
        "auto_map",
    ),
    "kernel": ({"name": "config.json", "attn_implementation": "evil/kernel"}, "attn_implementation"),
    "nested kernel": (
        {"name": "config.json", "_attn_implementation_internal": {"text": "evil/kernel:flash"}},
        "attn_implementation",
    ),
}
ELSEWHERE = {
    "unknown option": (
        {"part": TEXT, "tokenizer_kwargs": {"bpe_path": "/etc/passwd"}},
        "tokenizer_kwargs may hold",
    ),
    "subfolder": ({"part": TEXT, "tokenizer_kwargs": {"subfolder": "../.."}}, "tokenizer_kwargs may hold"),
    "options in a list": ({"part": TEXT, "tokenizer_kwargs": ["clean"]}, "tokenizer_kwargs may hold"),
    "text tower": ({"part": TEXT, "hf_model_name": "/tmp/evil"}, "hf_model_name must be a repository"),
    "up": ({"part": TEXT, "hf_model_name": "../evil"}, "hf_model_name must be a repository"),
    "tokenizer": ({"part": TEXT, "hf_tokenizer_name": "./evil"}, "hf_tokenizer_name must be a repository"),
    "timm": ({"part": ("model_cfg", "vision_cfg"), "timm_model_name": "hf-hub:evil/tower"}, "one of timm's own"),
    "timm folder": (
        {"part": ("model_cfg", "vision_cfg"), "timm_model_name": "local-dir:/evil"},
        "one of timm's own",
    ),
    "vocabulary": ({"name": "tokenizer_config.json", "vocab_file": "/etc/passwd"}, "out of the folder"),
    "merges": ({"name": "tokenizer_config.json", "merges_file": "../../secret"}, "out of the folder"),
    "width": ({"part": ("model_cfg", "vision_cfg"), "width": 10**9}, r"width must lie in 1\.\.65,536"),
    "layers": ({"part": TEXT, "layers": -1}, "layers must lie in"),
    "product": ({"part": TEXT, "layers": 1000, "width": 65_536}, "asks for about 5e[+]13 parameters"),
    "words": ({"part": TEXT, "vocab_size": "many"}, "vocab_size must lie in"),
    "no tower": ({"part": ("model_cfg",), "vision_cfg": None}, "must hold model_cfg with embed_dim"),
    "no object": ({"model_cfg": [1]}, "must hold model_cfg with embed_dim"),
}


@pytest.mark.parametrize("case", [*REMOTE, *ELSEWHERE])
@pytest.mark.parametrize("kind", ["open_clip", "trained"])
def test_folders_that_ask_for_more_than_tensors_are_refused_by_name(case, kind, folder, saved):
    """At once, on construction: transformers and open_clip's builders are not reached."""
    options, said = (REMOTE | ELSEWHERE)[case]
    place = folder if kind == "open_clip" else saved
    change(place, **options)
    said = f"asks for .*{said}" if case in REMOTE and case not in ("kernel", "nested kernel") else said
    with pytest.raises(RefusedModel, match=said) as refusal:
        OpenCLIP(name=f"local-dir:{place}", size=32) if kind == "open_clip" else Trained(str(place))
    assert "\n" not in str(refusal.value)
    if kind == "trained":
        with pytest.raises(RefusedModel):
            load_model(place)


@pytest.mark.parametrize("kind", ["open_clip", "trained"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[" * 100_000, "nested too deeply|is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[1, 2]", "must hold a JSON object"),
        (b" " * 8_000_001, "is larger than"),
        (b'{"auto_map": ' + b"1" * 5_000 + b"}", "is not JSON|asks for remote code"),
    ],
)
def test_configurations_that_are_none(kind, content, said, folder, saved):
    place = folder if kind == "open_clip" else saved
    (place / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(RefusedModel, match=said):
        OpenCLIP(name=f"local-dir:{place}", size=32) if kind == "open_clip" else Trained(str(place))


def test_links_out_of_the_folder_are_refused_and_hugging_faces_cache_is_not(folder, tmp_path):
    cache = tmp_path / "models--a--b"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert OpenCLIP(name=f"local-dir:{snapshot}", size=32).build(()).spec.size == 32
    (tmp_path / "secret.json").write_text("{}")
    (snapshot / "vocab.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(RefusedModel, match=r"vocab\.json leads out of the folder"):
        OpenCLIP(name=f"local-dir:{snapshot}", size=32)


@pytest.mark.parametrize(
    ("change_it", "said"),
    [
        (lambda d: d.update(kind="evil"), r"must name a kind \(small, open_clip\)"),
        (lambda d: d.update(spec=["size"]), "must name a kind"),
        (lambda d: d["spec"].update(size="large"), "must be a number of pixels, got 'large'"),
        (lambda d: d["spec"].update(nothing=1), "describes no model"),
        (lambda d: d["spec"].update(embed_dim=10**9), "embed_dim must lie in"),
        (lambda d: d.update(vocabulary=[10**12]), "vocabulary must hold"),
        (lambda d: d.pop("vocabulary"), "describes no model"),
    ],
)
def test_descriptions_that_no_save_has_written(change_it, said, tmp_path):
    SmallCLIP(embed_dim=16, text_width=32, text_heads=2).build(["a star"]).save(tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    change_it(description)
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=said):
        Trained(str(tmp_path)).build(())


@pytest.fixture
def transformers(monkeypatch):
    """What transformers loads code with, and asks on the terminal with."""
    package, dynamic = ModuleType("transformers"), ModuleType("transformers.dynamic_module_utils")
    package.__spec__ = ModuleSpec("transformers", None)
    package.dynamic_module_utils = dynamic
    dynamic.get_class_in_module = dynamic.get_cached_module_file = lambda *_: "evil"
    dynamic.TIME_OUT_REMOTE_CODE = 15
    monkeypatch.setitem(sys.modules, "transformers", package)
    monkeypatch.setitem(sys.modules, "transformers.dynamic_module_utils", dynamic)
    return dynamic


def test_transformers_neither_loads_code_nor_asks_for_leave(transformers):
    """The last line of defence: repositories of the hub, whose files nobody has looked at."""
    with no_remote_code("model.name=hf-hub:a/b"):
        assert transformers.TIME_OUT_REMOTE_CODE == 0
        for door in ("get_class_in_module", "get_cached_module_file"):
            with pytest.raises(RefusedModel, match=r"model\.name=hf-hub:a/b asks for remote code"):
                getattr(transformers, door)("Evil", "evil.py")
    assert transformers.get_class_in_module() == "evil"
    assert transformers.TIME_OUT_REMOTE_CODE == 15
    refused = pytest.raises(RefusedModel, match="asks for remote code")
    with refused, no_remote_code("model.name=hf-hub:a/b"):
        raise ValueError("please pass the argument `trust_remote_code=True`\nto allow custom code to be run")


@pytest.mark.parametrize("door", ["configuration", "tokenizer", "text tower"])
def test_repositories_of_the_hub_are_looked_at_before_they_are_built(door, tmp_path, monkeypatch):
    """A repository whose own configuration, or that of a repository it names, asks for code."""
    config = json.loads(json.dumps(TINY))
    if door == "configuration":
        config["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
    else:
        config["text_cfg"]["hf_tokenizer_name" if door == "tokenizer" else "hf_model_name"] = "evil/other"
    monkeypatch.setattr(open_clip, "get_model_config", lambda _: config)
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoConfig": "evil.Evil"}}')
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda _, file: str(tmp_path / file))
    monkeypatch.setattr("experiments.clip.checkpoints._reachable", lambda _: False)
    built = []
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: built.append(1))
    with pytest.raises(RefusedModel, match="asks for remote code"):
        OpenCLIP(name="hf-hub:evil/model").build(())
    assert not built


def test_all_of_open_clips_own_architectures_pass():
    for name in open_clip.list_models():
        check_architecture(open_clip.get_model_config(name), name)


@pytest.mark.parametrize("name", ["roberta-ViT-B-32", "ViT-B-16-SigLIP", "folder"])
def test_a_model_that_needs_transformers_says_so_at_once(name, folder, monkeypatch):
    monkeypatch.setattr("experiments.clip.open_clip_building.find_spec", lambda _: None)
    if name == "folder":
        change(folder, part=TEXT, hf_tokenizer_name="any/thing")
        name = f"local-dir:{folder}"
    with pytest.raises(ValueError, match="needs the package transformers for its tokenizer"):
        OpenCLIP(name=name)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        (("model_cfg", "vision_cfg"), {"nothing": 1}, "unexpected keyword argument 'nothing'"),
        (("model_cfg", "text_cfg"), {"heads": 7}, "divisible"),
        (("model_cfg",), {"cast_dtype": "float16"}, "cast_dtype"),
        (("model_cfg", "vision_cfg"), {"image_size": "large"}, "image_size must lie in"),
    ],
)
def test_descriptions_that_open_clip_cannot_build(part, values, said, folder):
    change(folder, part=part, **values)
    with pytest.raises(ValueError, match=said) as refusal:
        OpenCLIP(name=f"local-dir:{folder}", size=32).build(())
    assert "\n" not in str(refusal.value)


def test_an_evil_folder_leaves_no_mark(folder, tmp_path):
    """With transformers installed, where it ran the folder's Python."""
    pytest.importorskip("transformers")
    mark = tmp_path / "mark"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: ...\n")
    change(folder, part=TEXT, hf_tokenizer_name="any", tokenizer_kwargs={"trust_remote_code": True})
    change(folder, name="tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    with pytest.raises(ValueError, match="remote code"):
        OpenCLIP(name=f"local-dir:{folder}", size=32).build(())
    assert not mark.exists()


def test_a_saved_model_is_saved_again_without_the_hub(folder, saved, tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.clip.checkpoints._reachable", lambda _: pytest.fail("the hub was asked"))
    for file in folder.iterdir():
        file.unlink()
    again = tmp_path / "again"
    again.mkdir()
    model = Trained(str(saved)).build(())
    model.save(again)
    both = load_model(saved), Trained(str(again)).build(())
    assert all(map(torch.equal, both[0].clip.state_dict().values(), both[1].clip.state_dict().values()))
    assert both[1].spec == both[0].spec


@pytest.mark.parametrize("kind", ["open_clip", "trained"])
def test_the_key_of_a_model_is_its_content_not_its_place(kind, folder, saved, tmp_path):
    def key(place):
        options = {
            "open_clip": ["model=open_clip", f"model.name=local-dir:{place}"],
            "trained": ["model=trained", f"model.folder={place}"],
        }[kind]
        schema.register()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(
                "config", [*options, "detector=[slof]", "data.size=32", f"runtime.store={tmp_path}/store"]
            )
        return Runner.of(config).entry("trained")

    place = saved if kind == "trained" else folder
    first = key(place)
    place = place.rename(tmp_path / "moved")
    second = key(place)
    assert (second.key, second.reused) == (first.key, True)
    weights = place / ("weights.safetensors" if kind == "trained" else "open_clip_model.pth")
    state = open_clip.CLIP(**TINY).state_dict()
    save_file(state, weights) if kind == "trained" else torch.save(state, weights)
    assert key(place).key != first.key
