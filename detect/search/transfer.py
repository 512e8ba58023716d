"""Large arrays to a GPU and back, through two pieces of pinned memory.

A plain copy goes through a small buffer of the driver, on one thread. Here all threads fill one piece while the GPU
takes the other. Small arrays, and arrays that stay on the CPU, go the plain way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 2**25  # bytes


def to_device(array: Any, device: torch.device) -> Tensor:
    """An array as a tensor on `device`; on a GPU a contiguous one."""
    import torch

    if device.type != "cuda":
        return torch.as_tensor(array, device=device)
    if not isinstance(array, np.ndarray) or array.nbytes < PIECE:
        return torch.as_tensor(array, device=device).contiguous()
    source = torch.as_tensor(array)
    out = torch.empty(source.shape, dtype=source.dtype, device=device)

    def step(block: slice, piece: Tensor) -> Callable[[], Any]:
        piece.copy_(source[block])
        out[block].copy_(piece, non_blocking=True)
        return _event().synchronize

    _in_pieces(source, step)
    return out


def to_host(tensor: Tensor) -> np.ndarray:
    """A tensor (contiguous) as an array on the CPU."""
    import torch

    if tensor.device.type != "cuda" or tensor.nbytes < PIECE:
        plain: np.ndarray = tensor.cpu().numpy()
        return plain
    out = torch.empty(tensor.shape, dtype=tensor.dtype)

    def step(block: slice, piece: Tensor) -> Callable[[], Any]:
        piece.copy_(tensor[block], non_blocking=True)
        event = _event()

        def finish() -> None:
            event.synchronize()
            out[block].copy_(piece)

        return finish

    _in_pieces(tensor, step)
    array: np.ndarray = out.numpy()
    return array


def _in_pieces(rows: Tensor, step: Callable[[slice, Tensor], Callable[[], Any]]) -> None:
    """Call `step` for block after block of `rows`, with two pinned pieces in turn.

    step: (block, piece of its shape) -> what must be called before the piece is used again.
    """
    import torch

    size = max(1, PIECE // (rows[0].numel() * rows.element_size()))
    pieces = [torch.empty((size, *rows.shape[1:]), dtype=rows.dtype, pin_memory=True) for _ in range(2)]
    pending: list[Callable[[], Any]] = []
    for number, start in enumerate(range(0, len(rows), size)):
        if len(pending) == 2:
            pending.pop(0)()
        block = slice(start, min(start + size, len(rows)))
        pending.append(step(block, pieces[number % 2][: block.stop - start]))
    for finish in pending:
        finish()


def _event() -> Any:
    """An event after all that the GPU was given so far."""
    import torch

    event = torch.cuda.Event()
    event.record()
    return event
