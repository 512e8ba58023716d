"""The smallest entries of many rows; on a CPU by NumPy, whose selection and sorting use the processor's vectors."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

CACHED = 2**20  # bytes of rows that are worked on at a time
LAST = np.iinfo(np.int64).max


def smallest(products: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` smallest of each row of `products` (b, m) bfloat16, ascending, and their columns: (b, count).

    On a CPU, of equal ones the lower columns are taken; elsewhere torch takes any.
    """
    import torch

    if products.device.type != "cpu":
        values, columns = products.topk(count, dim=1, largest=False)
        return values, columns
    # bfloat16 numbers sort like the integers of their bits. Only negative ones come in reverse order. These are 0
    # but for rounding, and no list that ends among them passes equation (5) of docs/search.md.
    array = products.view(torch.int16).numpy()
    step = max(16, CACHED // (2 * array.shape[1]))
    blocks = [array[start : start + step] for start in range(0, len(array), step)]
    if torch.get_num_threads() == 1 or len(blocks) == 1:
        keys = [_smallest_keys(block, count) for block in blocks]
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            keys = list(pool.map(_smallest_keys, blocks, [count] * len(blocks)))
    key = np.concatenate(keys)
    return torch.from_numpy((key >> 32).astype(np.int16)).view(torch.bfloat16), torch.from_numpy(key & 0xFFFFFFFF)


def _smallest_keys(rows: np.ndarray, count: int) -> np.ndarray:
    """(b, count) int64: each value with its column in the lower half, in ascending order."""
    b, m = rows.shape
    bound = np.partition(rows, count - 1, axis=1)[:, count - 1]
    place = np.flatnonzero(rows <= bound[:, None])
    row = place // m
    found = np.bincount(row, minlength=b)  # `count`, and more where several equal the bound
    first = np.cumsum(found) - found
    keys = np.full((b, int(found.max())), LAST)
    keys[row, np.arange(len(row)) - first[row]] = rows.ravel()[place].astype(np.int64) << 32 | place - row * m
    keys.sort(axis=1)
    return keys[:, :count]


def sorted_by_distance(distances: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (b, c) float32, none below 0, and their rows (b, c), at least -1: ascending, ties by row."""
    import torch

    # The bits of such floats sort like integers. A row of -1 stands for none, and comes first among its equals.
    keys = distances.numpy().view(np.int32).astype(np.int64) << 32 | rows.numpy() + 1
    keys.sort(axis=1)
    return torch.from_numpy((keys >> 32).astype(np.int32).view(np.float32)), torch.from_numpy(
        (keys & 0xFFFFFFFF) - 1
    )
