"""Training that leaves the finite numbers stops there; a model that has collapsed is not scored; batch logs."""

import logging
import math
import re

import numpy as np
import pytest
import torch
from training_example import TINY_CONV, Noise

from detect import Embeddings
from experiments.clip.embed import refuse_collapsed
from experiments.runtime.progress import StepProgress
from experiments.runtime.refusals import Diverged
from experiments.training.checkpoint import Checkpoint, is_sound
from experiments.training.config import TrainConfig
from experiments.training.trainer import Trainer, train

TRAINING = TrainConfig(epochs=3, batch_size=16, lr=1e-3, warmup_epochs=0.0)


def test_training_stops_at_the_first_step_that_is_not_finite(tmp_path, monkeypatch):
    examined, whole = [], Trainer.backward

    def backward(self, batch):
        loss, features = whole(self, batch)
        return (loss * math.nan if self.step == 5 else loss), features

    monkeypatch.setattr(Trainer, "backward", backward)
    with pytest.raises(Diverged, match=r"the loss is nan at step 6 of 12, at a learning rate of 0\.000[0-9]+;"):
        train(
            TINY_CONV,
            TRAINING,
            Noise(64),
            tmp_path,
            seed=0,
            checkpoint_seconds=0,
            evaluate_zero_shot=lambda model: examined.append(1) or {"asr": 1.0},
        )
    assert len(examined) == 1  # after the first epoch of four steps, not with broken weights
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 5
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_gpu_is_asked_for_its_losses_only_now_and_then(tmp_path):
    pairs = Noise(64)
    trainer = Trainer(TINY_CONV.build(pairs.captions), TRAINING, pairs, tmp_path, seed=0, device="cpu")
    trainer.device, trainer.step = "cuda:0", 3
    trainer.losses.of_steps = [torch.tensor(1.0), torch.tensor(math.inf), torch.tensor(math.nan)]
    trainer.check_losses(now=False)
    with pytest.raises(Diverged, match="the loss is inf at step 2 of 12"):
        trainer.check_losses(now=True)


def test_embeddings_that_are_all_equal_are_refused():
    same = np.full((70_000, 4), 0.3, np.float32)
    with pytest.raises(RuntimeError, match="gives all 70,000 images the same embedding"):
        refuse_collapsed(Embeddings.of(same))
    near = same + np.random.default_rng(0).normal(0, 1e-8, same.shape).astype(np.float32)
    with pytest.raises(RuntimeError, match="the same embedding"):
        refuse_collapsed(Embeddings.of(near))
    with pytest.raises(RuntimeError, match="the same embedding"):
        refuse_collapsed(Embeddings.of(np.zeros((3, 4), np.float32)))
    same[69_999] = 1
    refuse_collapsed(Embeddings.of(same))
    refuse_collapsed(Embeddings.of(1e-20 * np.eye(4, dtype=np.float32)))


def test_progress_is_logged_without_a_terminal(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        train(TINY_CONV, TRAINING, Noise(64), tmp_path, seed=0, log_every=5)
    lines = [record.getMessage() for record in caplog.records if "samples/s" in record.getMessage()]
    pattern = (
        r"train: step (\d+) of 12  epoch [\d.]+  loss [\d.]+  lr [\d.e-]+  logit scale [\d.]+  [\d,]+ samples/s  "
        r"data \d+ %  left \d:\d\d:\d\d"
    )
    assert [re.fullmatch(pattern, line).group(1) for line in lines] == ["5", "10"]


def test_no_progress_is_logged_where_none_is_asked_for(monkeypatch):
    assert not StepProgress(12, 0).due(5)
    assert StepProgress(12, 5).due(5)
    monkeypatch.setenv("RANK", "1")
    assert not StepProgress(12, 5).due(5)


def test_a_checkpoint_of_another_version_is_set_aside(tmp_path, caplog):
    file = tmp_path / "checkpoint.pt"
    empty = torch.empty(0)
    Checkpoint(3, {}, {}, empty, empty, "[]", {}).save(file)
    assert is_sound(file)
    assert Checkpoint.load(file, "cpu").step == 3
    torch.save({"step": 3, "course": {}}, file)
    assert not is_sound(file)
    assert "another version of Lookout has written it" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.corrupt-1"]
