"""Do N processes, on as many GPUs, compute what one does? `python -m experiments.bench gpu` asks it of two or more.

torchrun runs this module in each process: they share one training step, and embed with a model that one trained.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from experiments.bench.report import Check


def process_checks(device: str, world: int, pairs: int) -> Iterator[Check]:
    """`world` processes on GPUs (NCCL), or for device "cpu" on the CPU (Gloo), against this process on `device`."""
    from experiments.data.shapes.source import Shapes

    pairs -= pairs % world
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Shapes(pairs=pairs, size=32, test_per_class=1).build(folder / "data", 1)
        _step(folder, "one", device)
        one = _embedded(folder, device)
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc-per-node={world}",
                "-m",
                "experiments.bench.processes",
                name,
                "cpu" if device == "cpu" else "auto",
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
        )
        what = f"{world} processes by {'Gloo' if device == 'cpu' else 'NCCL'} against one"
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            yield Check(f"{what}: they end well", False, last)
            return
        losses = [np.load(folder / side / "losses.npy")[:, 0] for side in ("one", "many")]
        error = float(np.abs(losses[1] - losses[0]).max() / losses[0].mean())
        yield Check(
            f"{what}: each sample's loss in the first step (float32)",
            error <= 0.01,
            f"largest error {error:.1e} of the mean, <= 0.01",
        )
        differ = int((np.load(folder / "embedded.npy") != one).any(axis=1).sum())
        yield Check(f"{what}: embeddings of the same model", differ == 0, f"{differ} of {len(one)} rows differ, 0")


def _step(folder: Path, side: str, device: str) -> None:
    """One step on all pairs, into `folder`/`side`."""
    from experiments.clip import SmallCLIP
    from experiments.data.pairs import open_pairs
    from experiments.training.config import TrainConfig
    from experiments.training.crops import Shift
    from experiments.training.trainer import train

    pairs = open_pairs(folder / "data")
    (folder / side).mkdir(exist_ok=True)
    training = TrainConfig(epochs=1, batch_size=len(pairs), warmup_epochs=0, precision="float32", augment=Shift(3))
    train(SmallCLIP(), training, pairs, folder / side, seed=0, device=device)


def _embedded(folder: Path, device: str) -> np.ndarray:
    """(n, d) images and texts side by side, by the model that one process has trained."""
    from experiments.clip import load_model
    from experiments.clip.embed import embed
    from experiments.data.pairs import open_pairs

    embeddings = embed(load_model(folder / "one", device), open_pairs(folder / "data"), batch=64)
    assert embeddings.text is not None
    return np.concatenate([embeddings.image, embeddings.text], axis=1)


def main(folder: Path, name: str) -> None:
    from experiments.runtime import distributed

    device = distributed.device(name)
    distributed.start(device, 1)
    _step(folder, "many", device)
    embedded = _embedded(folder, device)
    if distributed.is_main():
        np.save(folder / "embedded.npy", embedded)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
