"""A training that is killed in the middle of an epoch and started again ends with the same bits."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from training_example import TINY_CONV, Noise, TinyViT, processes

from experiments.runtime import distributed
from experiments.training.config import TrainConfig
from experiments.training.crops import Shift
from experiments.training.trainer import train

STEPS = 5  # an epoch's


class Killing(Noise):
    """Kills its process, as `kill -9` does, at the first images asked for in mid-epoch after a checkpoint."""

    def __init__(self, n, folder):
        super().__init__(n)
        self.checkpoint = folder / "checkpoint.pt"

    def images(self, rows):
        if distributed.is_main() and self.checkpoint.exists():
            step = torch.load(self.checkpoint, weights_only=True)["step"]
            if step > STEPS and step % STEPS:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().images(rows)


def trained(pairs, folder, spec, **options):
    """Train in this process; with a checkpoint after every step where it is going to be killed."""
    torch.set_num_threads(1)
    training = TrainConfig(
        epochs=2, batch_size=8, lr=1e-2, warmup_epochs=0.5, precision="float32", augment=Shift(2), **options
    )
    seconds = 0 if isinstance(pairs, Killing) else 20
    train(spec, training, pairs, folder, seed=3, checkpoint_seconds=seconds)


@pytest.mark.parametrize(
    ("world", "spec", "options"),
    [
        (1, TINY_CONV, {}),
        (1, TinyViT(patch_dropout=0.5), {"accumulate": 2, "loss": "cleanclip"}),
        (2, TINY_CONV, {"clip_norm": 1.0}),
        (2, TinyViT(patch_dropout=0.5), {"accumulate": 2, "loss": "siglip"}),
    ],
    ids=["1", "1 accumulated", "2", "2 accumulated"],
)
def test_killed_and_started_again(world, spec, options, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()

    def task(pairs, folder):
        trained(pairs, folder, spec, **options)

    n = 38  # the last batch of an epoch wraps around
    assert processes(world, task, Noise(n), whole) == [0] * world
    codes = processes(world, task, Killing(n, broken), broken)
    assert codes[0] == -signal.SIGKILL
    step = torch.load(broken / "checkpoint.pt", weights_only=True)["step"]
    assert STEPS < step < 2 * STEPS
    assert step % STEPS
    assert not (broken / "weights.safetensors").exists()

    assert processes(world, task, Noise(n), broken) == [0] * world
    one, other = load_file(whole / "weights.safetensors"), load_file(broken / "weights.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = np.load(whole / "losses.npy")
    assert losses.shape == (n, 2)
    assert np.array_equal(losses, np.load(broken / "losses.npy"))
    assert (whole / "history.jsonl").read_text() == (broken / "history.jsonl").read_text()
    assert [json.loads(line)["epoch"] for line in (broken / "history.jsonl").read_text().splitlines()] == [1, 2]
    assert not (broken / "checkpoint.pt").exists()


class Stopping(Noise):
    """Ends its training at the first images asked for in the second epoch, after a checkpoint."""

    def __init__(self, n, folder):
        super().__init__(n)
        self.checkpoint = folder / "checkpoint.pt"

    def images(self, rows):
        if self.checkpoint.exists():
            raise InterruptedError("planted")
        return super().images(rows)


def flip(file):
    """A bit in the middle, which torch itself reads without a word."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda file: os.truncate(file, file.stat().st_size // 2),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(bytes(10_000)),
    ],
    ids=["a bit", "cut short", "emptied", "zeros"],
)
def test_a_damaged_checkpoint_is_set_aside_and_training_starts_anew(damage, tmp_path, caplog):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    trained(Noise(16), whole, TINY_CONV)
    with pytest.raises(InterruptedError):
        trained(Stopping(16, broken), broken, TINY_CONV)
    damage(broken / "checkpoint.pt")
    caplog.clear()
    trained(Noise(16), broken, TINY_CONV)
    (line,) = [message for message in caplog.messages if "checkpoint" in message]
    assert line.startswith(f"train: {broken / 'checkpoint.pt'} cannot be read (")
    assert line.endswith("): set aside as checkpoint.corrupt-1, training starts anew")
    one, other = load_file(whole / "weights.safetensors"), load_file(broken / "weights.safetensors")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert sorted(path.name for path in broken.iterdir()) == sorted(path.name for path in whole.iterdir())


def test_all_processes_start_anew_where_the_checkpoint_is_damaged(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(bytes(10_000))
    assert processes(2, lambda: trained(Noise(16), tmp_path, TINY_CONV)) == [0, 0]
    assert (tmp_path / "weights.safetensors").exists()
    assert not list(tmp_path.glob("checkpoint*"))
