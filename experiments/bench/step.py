"""A section of `python -m experiments.bench`: the small CLIP's training step on a CPU, in processor seconds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np

from experiments.bench.report import Check, Note, Ratio, section

if TYPE_CHECKING:
    from experiments.training.trainer import Trainer

BATCH, SIZE = 128, 32
WORDS = ["a", "photo", "of", "the", "small", "red", "green", "star", "apple", "kite", "house"]


@section("step")
def step(quick: bool) -> Iterator[Ratio | Check | Note]:
    """The small CLIP's training step (batch 128, 32 pixels), against the same with torch's own attention"""
    yield from attention_ratio(6 if quick else 40)


def attention_ratio(steps: int, batch: int = BATCH) -> Iterator[Ratio | Check | Note]:
    """Processor seconds of a step with each attention, the two taking turns; and are the weights the same?"""
    from experiments.clip import short_attention

    with tempfile.TemporaryDirectory() as folder:
        trainers = {way: _trainer(batch, steps, Path(folder)) for way in ("ours", "torch's")}
        if not trainers["ours"].bf16:
            yield Note("attention of few tokens", "left out: training is in float32 on this processor")
            return
        waiting = {way: trainer.batches(0) for way, trainer in trainers.items()}
        seconds: dict[str, list[float]] = {way: [] for way in trainers}
        for _ in range(steps):
            for way, trainer in trainers.items():
                torchs = mock.patch.object(short_attention, "MOST_TOKENS", 0) if way != "ours" else nullcontext()
                with torchs:
                    start = time.process_time()
                    trainer.train_step(next(waiting[way]))
                    seconds[way].append(time.process_time() - start)
    ours, theirs = (float(np.median(seconds[way])) for way in trainers)
    yield Ratio("a step, data included, against the same with torch's own attention", theirs / ours, seconds=ours)
    yield Ratio("samples per processor second", batch / ours, unit="/s")
    yield _same(trainers["ours"].model.clip.state_dict(), trainers["torch's"].model.clip.state_dict(), steps)


def _same(ours: Any, theirs: Any, steps: int) -> Check:
    off = max(float((ours[name].float() - theirs[name].float()).abs().max()) for name in ours)
    return Check(
        f"weights after {steps} steps, against torch's own attention", off <= 1e-2, f"{off:.1e} off, <= 1e-2"
    )


def _trainer(batch: int, steps: int, folder: Path) -> Trainer:
    """A training of noise, as `train=small` has it."""
    import torch

    from attacks.pairs import ArrayPairs
    from experiments.clip import SmallCLIP
    from experiments.training.batches import Shift
    from experiments.training.config import TrainConfig
    from experiments.training.trainer import Trainer

    rng = np.random.default_rng(0)
    n = batch * steps
    captions = [" ".join(rng.choice(WORDS, count)) for count in rng.integers(3, 9, n)]
    pairs = ArrayPairs(rng.integers(0, 256, (n, SIZE, SIZE, 3), dtype=np.uint8), captions)
    config = TrainConfig(
        epochs=1, batch_size=batch, lr=2e-3, weight_decay=0.02, warmup_epochs=0.3, clip_norm=1.0, augment=Shift()
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallCLIP(size=SIZE).build(captions)
    return Trainer(model, config, pairs, folder, 0, "cpu")
