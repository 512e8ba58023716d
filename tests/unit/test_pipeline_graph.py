"""Stages may use only what they declare, and every setting that can change a result is part of a key."""

import pytest
from omegaconf import DictConfig, OmegaConf
from pipeline_example import runner

from experiments.pipeline.experiment import ScoreSpec
from experiments.pipeline.graph import STAGES, Run
from experiments.pipeline.runner import Runner


def keys(made):
    """The key of every value, those of scores and cells for each detector."""
    with_settings = ("inverted", "warped", "defended", "neighbours", "scores", "cell")
    plain = [name for name in STAGES if name not in with_settings]
    specs = list(made.experiment.specs())
    return {name: made.key(name) for name in plain} | {
        (name, spec): made.key(name, spec=spec) for name in ("scores", "cell") for spec in specs
    }


@pytest.mark.parametrize("gives", STAGES)
def test_a_stage_cannot_read_what_it_does_not_declare(gives):
    made = runner()
    run = Run(STAGES[gives], made.experiment, made.resources)
    for name in STAGES[gives].reads:
        getattr(run, name)
    for name in {"attack", "seed", "detectors", "config", "labels"} - set(STAGES[gives].reads):
        with pytest.raises(AttributeError, match=f"it may not read {name!r}"):
            getattr(run, name)


def test_keys_need_no_computation(tmp_path):
    keys(runner(f"runtime.store={tmp_path / 'store'}"))
    assert not (tmp_path / "store").exists()


NO_RESULT = {
    "runtime.store": "where results lie",
    "runtime.device": "computes the same up to rounding; precision is part of the key",
    "runtime.workers": "processes that load",
    "runtime.checkpoint_seconds": "how often a training is saved",
    "runtime.log_every": "how often a training is logged",
    "target_new": "whether a target that no caption names is refused",
    "data.max_damaged": "a higher limit takes up what a refused build has left",
    "neighbours.backend": "of a detector that is not chosen here",
}
OTHER = {
    "neighbours.scope": "full",
    "neighbours.modality": "joint",
    "neighbours.backend": "faiss",
    "train.precision": "float32",
    "train_on": "clean",
    "attack.captions": "mixed",
    "attack.rows": "other",
    "runtime.decoder": "device",
    "detector.forest.normalise": True,
    "target": "anchor",
}


def leaves(node, prefix=""):
    for name in node:
        path = f"{prefix}{name}"
        if isinstance(node._get_node(name), DictConfig):
            yield from leaves(node[name], path + ".")
        else:
            yield path


def flipped(path, value):
    if path in OTHER:
        return OTHER[path]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.9
    return None


def test_every_setting_changes_a_key_or_no_result():
    """Flip each number and switch: another key, or it is listed as one that no result depends on."""
    made = runner()
    before, config = keys(made), made.experiment.config
    silent, tried = [], 0
    for path in leaves(config):
        group = path.partition(".")[0]
        if group in ("scale", "logger", "task") or path.endswith("_target_"):
            continue  # scale is where the others take their values from; the rest is no part of a stage
        value = flipped(path, OmegaConf.select(config, path))
        if value is None:
            continue
        changed = OmegaConf.create(OmegaConf.to_container(config))
        for name in (
            ("data.size", "model.size") if path.endswith(".size") and group in ("data", "model") else (path,)
        ):
            OmegaConf.update(changed, name, value)
        tried += 1
        if keys(Runner.of(changed)) == before and path not in NO_RESULT:
            silent.append(path)
    assert tried > 45
    assert not silent


def test_a_spec_names_its_detector():
    assert ScoreSpec("slof", True) in list(runner().experiment.specs())
