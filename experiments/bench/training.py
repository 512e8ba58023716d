"""A section of `python -m experiments.bench`: does the input keep the model busy?

JPEG files of 256 pixels are drawn into tar shards, and RN50 of the paper's protocol is trained on them at 224.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.bench.report import Check, Ratio, section

if TYPE_CHECKING:
    from experiments.data.shard_pairs import ShardPairs
    from experiments.training.trainer import Trainer


@section("training")
def training(quick: bool) -> Iterator[Ratio | Check]:
    """Samples per second of decoding alone, of RN50's training step alone, and of the two together"""
    import torch

    cuda = torch.cuda.is_available()
    workers = os.cpu_count() or 1
    batch, count = (256, 8 if quick else 32) if cuda else (8, 2 if quick else 4)
    with tempfile.TemporaryDirectory() as name:
        source = make_shards(Path(name), min(batch * count, 4096), workers)
        trainer = _trainer(source, batch, Path(name), "cuda:0" if cuda else "cpu")
        rates = _rates(trainer, count, batch, workers, cuda)
        in_batches = list(batch_decoding(source, trainer.device, batch, count))
    where = f"{'bfloat16' if trainer.bf16 else 'float32'}, on {torch.cuda.get_device_name() if cuda else 'the CPU'}"
    yield Ratio(f"decode, resize, crop: alone, {workers} processes", rates.decoding, unit="/s")
    yield from in_batches
    yield Ratio(f"RN50's step alone, batch {batch}, {where}", rates.step, unit="/s")
    yield Ratio("the two together", rates.together, unit="/s")
    if cuda:
        yield Ratio("peak memory of the step", rates.memory, unit="GB")
        yield Ratio("peak memory of open_clip's own", rates.memory_of_open_clip, unit="GB")
    slower, bottleneck = min((rates.decoding, "decoding"), (rates.step, "the model"))
    what = f"of the slower one alone is kept; the bottleneck is {bottleneck}"
    yield Ratio(what, rates.together / slower)
    yield Ratio(
        "the step against open_clip's own forward, loss and backward", rates.step / rates.open_clip, aim=0.9
    )


@dataclass(frozen=True)
class Rates:
    """Samples per second, and gigabytes of the GPU at most."""

    decoding: float
    step: float
    together: float
    open_clip: float
    memory: float
    memory_of_open_clip: float


def make_shards(folder: Path, pairs: int, workers: int) -> ShardPairs:
    """At least `pairs` JPEG files of 256 pixels in tar shards, to be read at 224."""
    from experiments.data.pairs import open_pairs
    from experiments.data.shapes.export import Export
    from experiments.data.shards import Shards

    Export(folder / "shards", pairs=pairs + pairs // 4, shards=1 + pairs // 512, size=256).write(workers)
    data = Shards(shards=str(folder / "shards"), size=224, check=False, classes=4)
    (folder / "data").mkdir()
    data.build(folder / "data", workers)
    return open_pairs(folder / "data")  # type: ignore[return-value]


def step_ratio(name: str, size: int, batch: int, count: int, device: str, folder: Path) -> Iterator[Ratio]:
    """`count` steps of a model on one batch in memory, ours against open_clip's own."""
    import numpy as np
    import torch

    from experiments.bench.gpu_rates import Repeated
    from experiments.training.batches import Batch

    cuda = device.startswith("cuda")
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    source = Repeated(pixels, batch)
    trainer = _trainer(source, batch, folder, device, name, size)
    images, tokens = torch.from_numpy(pixels), trainer.model.tokenizer(source.captions)
    here = Batch(torch.arange(batch), batch, *((x.pin_memory() if cuda else x) for x in (images, tokens)))
    for _ in range(3):
        trainer.train_step(here)
    _peak(cuda)
    ours, memory = _rate(cycle([here]), count, batch, trainer.train_step, cuda), _peak(cuda)
    trainer.optimiser.state.clear()  # else its memory would be counted as open_clip's
    theirs = _rate(cycle([here]), count, batch, _open_clips_step(trainer), cuda, skip=3)
    yield Ratio(f"{name}'s step at {size}, batch {batch}: ours", ours, unit="/s")
    yield Ratio("the same, open_clip's own forward, loss and backward", theirs, unit="/s")
    yield Ratio("ratio of the two", ours / theirs, aim=1.2)
    if cuda:
        yield Ratio("peak memory of ours", memory, unit="GB")
        yield Ratio("peak memory of open_clip's", _peak(cuda), unit="GB")


def _trainer(source: Any, batch: int, folder: Path, device: str, name: str = "RN50", size: int = 224) -> Trainer:
    """source: pairs, of which only the number counts until batches are loaded."""
    from experiments.clip import OpenCLIP
    from experiments.training.config import TrainConfig
    from experiments.training.trainer import Trainer

    config = TrainConfig(epochs=1000, batch_size=batch, warmup_epochs=0)  # more epochs than are run
    return Trainer(OpenCLIP(name, size=size).build(()), config, source, folder, 0, device)


def _rates(trainer: Trainer, count: int, batch: int, workers: int, cuda: bool) -> Rates:
    decoded = list(islice(_batches(trainer, workers), 3))
    for first in decoded:  # warm-up: memory, kernels
        trainer.train_step(first)
    _peak(cuda)
    # What was decoded while nobody took anything does not count. (A CPU's model is slower than any decoding.)
    ahead = 5 * workers
    decoding = _rate(_batches(trainer, workers), count, batch, lambda _: None, cuda, skip=ahead)
    step, memory = _rate(cycle(decoded), count, batch, trainer.train_step, cuda), _peak(cuda)
    skip = ahead if cuda else 1
    together = _rate(_batches(trainer, workers), count, batch, trainer.train_step, cuda, skip=skip)
    trainer.optimiser.state.clear()  # else its memory would be counted as open_clip's
    plain = _rate(cycle(decoded), count, batch, _open_clips_step(trainer), cuda)
    return Rates(decoding, step, together, plain, memory, _peak(cuda))


def _batches(trainer: Trainer, workers: int) -> Iterator[Any]:
    from experiments.training.batches import load

    return load(trainer.steps(), 0, workers, pin=trainer.device.startswith("cuda"))


def _rate(
    batches: Iterator[Any], count: int, size: int, work: Callable[[Any], None], cuda: bool, skip: int = 1
) -> float:
    """Samples per second over `count` batches; the first `skip`, with which the processes start, are not timed."""
    import torch

    for batch in islice(batches, skip):
        work(batch)
    if cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for batch in islice(batches, count):
        work(batch)
    if cuda:
        torch.cuda.synchronize()
    return count * size / (time.perf_counter() - start)


def _peak(cuda: bool) -> float:
    """The most memory that the GPU has held since the last call, in gigabytes; 0 without one."""
    import torch

    if not cuda:
        return 0.0
    peak = torch.cuda.max_memory_allocated() / 2**30
    torch.cuda.reset_peak_memory_stats()
    return peak


def batch_decoding(shards: ShardPairs, device: str, batch: int, rounds: int) -> Iterator[Ratio | Check]:
    """Images per second by `runtime.decoder=device` on `device`, reading them too; and are they right?"""
    import numpy as np

    from experiments.data.jpeg_batches import JPEGDecoder

    rows = np.arange(min(batch, len(shards)))
    try:
        decoder = JPEGDecoder(device)
        decoded, left = decoder.canvases(shards.contents(rows), shards.size, shards.limits)  # warm-up
    except (ImportError, ValueError) as error:
        print(f"  torchvision's decoder: left out ({error})")
        return
    canvases = shards.images(rows)
    there = np.setdiff1d(rows, left)
    off = np.abs(decoded[there].astype(int) - canvases[there]).mean() if len(there) else np.inf
    yield Check(
        f"images decoded by torchvision on {device} against Pillow's",
        len(left) <= len(rows) // 10 and off <= 3,
        f"{off:.2f} of 255 off in the mean, <= 3; {len(left)} of {len(rows)} refused, <= a tenth",
    )
    start = time.perf_counter()
    for _ in range(rounds):
        decoder.canvases(shards.contents(rows), shards.size, shards.limits)
    rate = rounds * len(rows) / (time.perf_counter() - start)
    yield Ratio(
        f"decode, resize, crop: by torchvision on {device}, one thread, batches of {len(rows)}", rate, unit="/s"
    )


def _open_clips_step(trainer: Trainer) -> Callable[[Any], None]:
    """The same model as open_clip's own script trains it: autocast, ClipLoss, AdamW."""
    import torch
    from open_clip.loss import ClipLoss

    clip, loss = trainer.model.clip, ClipLoss()
    optimiser = torch.optim.AdamW(clip.parameters(), lr=1e-3)
    kind = trainer.device.split(":")[0]

    def step(batch: Any) -> None:
        images = batch.images.to(trainer.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        optimiser.zero_grad()
        with torch.autocast(kind, torch.bfloat16, enabled=trainer.bf16):
            out = clip(images.contiguous(), batch.tokens.to(trainer.device, non_blocking=True))
            total = loss(out["image_features"], out["text_features"], out["logit_scale"])
        total.backward()
        optimiser.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, 4.6052)

    return step
