"""Embed every sample, and mild augmentations of its image, written by row and asserted filled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from attacks.pairs import Pairs
from detect import Embeddings
from detect.embeddings import unit
from detect.views import DRIFT, VIEWS
from experiments.clip.model import TrainedModel
from experiments.runtime import distributed
from experiments.runtime.loading import load_items
from experiments.runtime.progress import track


class _Slices(Dataset):
    """This process's batches; images as the model is evaluated on them: no augmentation.

    Processes share whole batches, so that each batch gives the same bits as in a single process.
    """

    def __init__(self, pairs: Pairs, tokenise: Callable[[Sequence[str]], torch.Tensor], batch: int) -> None:
        self.pairs, self.tokenise = pairs, tokenise
        starts = range(distributed.rank() * batch, len(pairs), distributed.world_size() * batch)
        self.slices = [np.arange(start, min(start + batch, len(pairs))) for start in starts]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = self.slices[index]
        tokens = self.tokenise([self.pairs.captions[int(row)] for row in rows])
        return torch.from_numpy(rows), torch.from_numpy(self.pairs.images(rows)), tokens


def embed(
    model: TrainedModel, pairs: Pairs, *, workers: int = 0, threads: bool = False, batch: int = 512
) -> Embeddings:
    """Un-normalised image and text embeddings of all `pairs`, (n, d) each, float32 arithmetic on CPUs.

    On GPUs the forward pass runs in bfloat16 and its result is stored as float32. Under torchrun each process
    embeds its own batches and all end up with the whole.
    workers: processes that load batches; with `threads`, threads (of pairs that are decoded on a GPU). 0: none.
    """

    def both(rows: torch.Tensor, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return model.image(model.pixels(pixels)), model.text(tokens)

    image, text = _by_row(model, pairs, both, "embed", workers, threads, batch)
    return Embeddings(np.asarray(pairs.ids), image, text)


def agreement_of_views(
    model: TrainedModel,
    pairs: Pairs,
    embeddings: Embeddings,
    *,
    workers: int = 0,
    threads: bool = False,
    batch: int = 256,
) -> np.ndarray:
    """Cosine of each image's mild augmentations with its caption, (n, views) float32, in the order of `VIEWS`.

    workers, threads: as of `embed`.
    """
    assert embeddings.text is not None
    captions = torch.from_numpy(unit(embeddings.text))

    def agree(rows: torch.Tensor, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (_cosines(model, VIEWS.values(), pixels, captions[rows]),)

    return _by_row(model, pairs, agree, "views", workers, threads, batch)[0]


def drift_of_views(
    model: TrainedModel,
    pairs: Pairs,
    embeddings: Embeddings,
    *,
    workers: int = 0,
    threads: bool = False,
    batch: int = 256,
) -> np.ndarray:
    """1 - cosine of each image with its mild augmentations, (n, views) float32, in the order of `DRIFT`.

    workers, threads: as of `embed`.
    """
    images = torch.from_numpy(unit(embeddings.image))

    def move(rows: torch.Tensor, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (1 - _cosines(model, DRIFT.values(), pixels, images[rows]),)

    return _by_row(model, pairs, move, "drift", workers, threads, batch)[0]


def _cosines(
    model: TrainedModel,
    views: Iterable[Callable[[torch.Tensor], torch.Tensor]],
    pixels: torch.Tensor,
    others: torch.Tensor,
) -> torch.Tensor:
    """Cosine of each augmented image with the unit-length embedding (b, d) that stands for it, (b, views)."""
    x, others = model.pixels(pixels), others.to(model.device)
    seen = [torch.nn.functional.normalize(model.image(view(x)).float(), dim=1) for view in views]
    return torch.stack([(image * others).sum(dim=1) for image in seen], dim=1)


@torch.inference_mode()
def _by_row(
    model: TrainedModel,
    pairs: Pairs,
    compute: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
    label: str,
    workers: int,
    threads: bool,
    batch: int,
) -> list[np.ndarray]:
    """Results of `compute` (rows, images, tokens -> tensors) for all rows; asserts that every row is filled."""
    cuda = model.device.type == "cuda"
    slices = _Slices(pairs, model.tokenizer, batch)
    loader: Iterable[Any]
    if threads and workers:
        loader = in_threads(slices.__getitem__, len(slices), workers)
    else:
        loader = load_items(slices, range(len(slices)), workers, pin=cuda)
    whole: list[torch.Tensor] = []
    filled = torch.zeros(len(pairs), dtype=torch.int32)
    for rows, pixels, tokens in track(loader, len(slices), label, "batch"):
        with torch.autocast("cuda", torch.bfloat16, enabled=cuda):
            parts = [part.float().cpu() for part in compute(rows, pixels, tokens)]
        if not whole:
            whole = [torch.zeros(len(pairs), part.shape[1]) for part in parts]
        for target, part in zip(whole, parts, strict=True):
            target[rows] = part
        filled[rows] += 1
    if distributed.world_size() > 1:
        # A process without a batch of its own does not know the widths yet.
        widths = distributed.broadcast([part.shape[1] for part in whole])
        whole = whole or [torch.zeros(len(pairs), width) for width in widths]
        whole, filled = [distributed.all_sum(part) for part in whole], distributed.all_sum(filled)
    if not bool((filled == 1).all()):
        raise RuntimeError(f"{int((filled != 1).sum())} of {len(pairs)} rows were not computed exactly once")
    return [part.numpy() for part in whole]


def in_threads(get: Callable[[int], Any], count: int, threads: int) -> Iterator[Any]:
    """get(0), get(1), ... in this order, computed by `threads` threads a few steps ahead."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for index in range(count):
                waiting.append(pool.submit(get, index))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def refuse_collapsed(embeddings: Embeddings) -> None:
    """RuntimeError if the embeddings (n, d) are useless: not finite, or the same for all images.

    Rounding depends on the place in a batch, so a difference below 1e-5 of the norm counts as none.
    """
    image = embeddings.image
    first, same = image[:1], len(image) > 1
    for start in range(0, len(image), 65536):
        part = image[start : start + 65536]
        if not np.isfinite(part).all():
            raise RuntimeError("the model's image embeddings hold values that are not finite")
        same = same and bool(np.abs(part - first).max() <= 1e-5 * max(float(np.linalg.norm(first)), 1e-30))
    if same:
        raise RuntimeError(
            f"the model gives all {len(image):,} images the same embedding, so nothing can be detected; "
            "it has collapsed in training (a lower train.lr helps), or its weights are not its own"
        )


def save(embeddings: Embeddings, folder: Path) -> None:
    np.save(folder / "ids.npy", embeddings.ids)
    np.save(folder / "image.npy", embeddings.image)
    if embeddings.text is not None:
        np.save(folder / "text.npy", embeddings.text)


def load(folder: Path) -> Embeddings:
    text = folder / "text.npy"
    return Embeddings(
        np.load(folder / "ids.npy"),
        np.load(folder / "image.npy"),
        np.load(text) if text.exists() else None,
    )
