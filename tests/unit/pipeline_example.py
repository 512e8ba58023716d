"""Runners of small configurations, of which only keys are asked."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from experiments.pipeline import config as schema
from experiments.pipeline.runner import Runner

CONF = Path(__file__).parents[2] / "conf"


def runner(*overrides):
    schema.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return Runner.of(compose("config", ["data.pairs=500", *overrides]))
