"""A run says what it does, or refuses its configuration, before torch is imported, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from pipeline_example import runner

from experiments.pipeline.graph import STAGES, Run

ROOT = Path(__file__).parents[2]
CHECK = """
import json
import sys
from experiments.pipeline import config
from experiments.pipeline.runner import Runner
from experiments.runtime import refusals

config.register()
for case in json.loads(sys.argv[1]):
    try:
        made = Runner.of(config.composed([case]))
        said = " ".join(map(made.key, ["data", "clean", "plan"]))
    except Exception as error:
        said = refusals.line(error)
    print(json.dumps([case, said, "torch" in sys.modules]))
"""


def check(cases):
    """Each configuration in turn, in one process: what it said, and whether torch was imported."""
    command = [sys.executable, "-c", CHECK, json.dumps(cases)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_the_keys_of_the_first_stages_need_no_torch():
    cases = ["seed=0", "attack=badclip", "attack=wanet", "task=scan", "train/loss=siglip", "train=paper"]
    found = check(cases)
    assert [case for case, _, _ in found] == cases
    for case, said, imported in found:
        assert len(said.split()) == 3, said
        assert not imported, case


def test_values_are_refused_without_torch():
    refused = {
        "data.pairs=-1": "pairs must be at least 1, got -1",
        "train.lr=-1": "train.lr must be above 0, got -1",
        "attack.rate=2": "attack.rate must be",
        "detector.slof.k=0": "k must be",
        "runtime.device=tpu": "runtime.device must be auto, cpu, cuda or cuda:<number>, got 'tpu'",
    }
    found = check(list(refused))
    assert len(found) == len(refused)
    for case, said, imported in found:
        assert refused[case] in said, said
        assert not imported, case


def test_torch_has_its_threads_before_a_stage_computes():
    """`Run` is what every stage computes with; making one sets the number of threads."""
    made = runner("runtime.threads=3")
    before = torch.get_num_threads()
    try:
        Run(STAGES["plan"], made.experiment, made.resources)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
