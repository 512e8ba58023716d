"""A tiny CLIP without dropout and tiny pairs, for the tests of training."""

import os
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import open_clip
import torch

from experiments.clip import SmallCLIP, TrainedModel
from experiments.clip.tokenizer import CompactTokenizer

WORDS = ["red", "green", "blue", "star", "apple", "kite", "old", "small"]


class Noise:
    """Pairs of seeded noise; captions of three words."""

    size = 32

    def __init__(self, n):
        self.ids = np.arange(n)
        rng = np.random.default_rng(7)
        self.captions = [" ".join(rng.choice(WORDS, 3)) for _ in range(n)]
        self.pixels = rng.integers(0, 256, (n, self.size, self.size, 3), dtype=np.uint8)

    def __len__(self):
        return len(self.ids)

    def images(self, rows):
        return self.pixels[np.asarray(rows)].copy()


@dataclass(frozen=True)
class TinyViT:
    """A vision transformer, so without batch normalisation; patch dropout draws random numbers."""

    kind: ClassVar[str] = "tiny"
    trains: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ()
    size: int = 32
    patch_dropout: float = 0.0
    mean: None = None
    std: None = None

    def build(self, texts):
        tokenizer = CompactTokenizer.from_texts(texts, 8)
        vision = {
            "image_size": 32,
            "layers": 1,
            "width": 32,
            "head_width": 16,
            "patch_size": 8,
            "patch_dropout": self.patch_dropout,
        }
        text = {"context_length": 8, "vocab_size": tokenizer.vocab_size, "width": 32, "heads": 2, "layers": 1}
        return TrainedModel(open_clip.CLIP(16, vision, text), tokenizer, self)

    def describe(self, model, folder):
        return {}


TINY_CONV = SmallCLIP(embed_dim=16, text_width=32, text_heads=2, context_length=8)


def processes(world, task, *arguments):
    """Run `task(*arguments)` in `world` forked processes that form a process group; their exit codes."""
    import multiprocessing
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def body(rank):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        torch.set_num_threads(1)
        if world > 1:
            torch.distributed.init_process_group("gloo")
        task(*arguments)
        os._exit(0)

    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=body, args=(rank,)) for rank in range(world)]
    for process in started:
        process.start()
    started[0].join(300)
    for process in started[1:]:
        process.join(5 if started[0].exitcode else 300)
        if process.is_alive():  # its partner was killed
            process.kill()
            process.join()
    return [process.exitcode for process in started]
