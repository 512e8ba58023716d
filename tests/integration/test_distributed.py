"""Two processes on CPUs against one: training, embedding, and the whole of `torchrun run.py`."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from training_example import TINY_CONV, Noise, TinyViT, processes

from experiments.clip.embed import agreement_of_views, drift_of_views, embed, save
from experiments.runtime import distributed
from experiments.training.config import TrainConfig
from experiments.training.crops import Shift
from experiments.training.trainer import train

ROOT = Path(__file__).parents[2]


def trained(folder, world, spec, **options):
    """(weights, losses) after a few steps in `world` processes."""
    # AdamW divides by the gradient's size, which makes steps of rounding where a gradient is zero in theory
    # (the bias of attention's keys, say), unless eps is far above it.
    settings = {
        "epochs": 2,
        "batch_size": 12,
        "lr": 1e-3,
        "eps": 1e-3,
        "warmup_epochs": 0,
        "precision": "float32",
        "augment": Shift(2),
    }

    def task():
        train(spec, TrainConfig(**settings | options), Noise(42), folder, seed=1)

    folder.mkdir()
    assert processes(world, task) == [0] * world
    return load_file(folder / "weights.safetensors"), np.load(folder / "losses.npy")


def largest_share(one, two, spec):
    """Of the weights' difference in the way that training has moved them, over all tensors."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = spec.build(Noise(42).captions).clip.state_dict()
    assert one.keys() == two.keys()
    moved = [n for n in start if one[n].is_floating_point() and not torch.equal(one[n], start[n])]
    assert len(moved) > 20
    return max(float((one[name] - two[name]).norm() / (one[name] - start[name]).norm()) for name in moved)


@pytest.mark.parametrize(
    ("spec", "options"),
    [
        (TinyViT(), {"accumulate": 2, "clip_norm": 1.0}),
        (TinyViT(), {"loss": "siglip"}),
        (TinyViT(), {"loss": "cleanclip"}),
        (TINY_CONV, {"loss": "cyclip"}),
    ],
    ids=["accumulated", "siglip", "cleanclip", "batch norm, cyclip"],
)
def test_two_processes_train_as_one(spec, options, tmp_path):
    one, losses_of_one = trained(tmp_path / "one", 1, spec, **options)
    two, losses_of_two = trained(tmp_path / "two", 2, spec, **options)
    assert losses_of_two.shape == (42, 2)
    assert np.abs(losses_of_one - losses_of_two).max() < 1e-3  # of about 3: sums are taken in another order
    assert largest_share(one, two, spec) < 0.005


def test_without_global_batch_normalisation_each_process_has_its_own(tmp_path):
    one, _ = trained(tmp_path / "one", 1, TINY_CONV)
    two, losses = trained(tmp_path / "two", 2, TINY_CONV, sync_batch_norm=False)
    assert np.isfinite(losses).all()
    assert largest_share(one, two, TINY_CONV) > 0.5


@pytest.mark.parametrize("n", [42, 5])
def test_two_processes_embed_to_the_same_bits(n, tmp_path):
    pairs = Noise(n)
    torch.manual_seed(0)
    model = TINY_CONV.build(pairs.captions)
    model.clip.eval()

    def task(folder):
        embeddings = embed(model, pairs, batch=8)
        views = agreement_of_views(model, pairs, embeddings, batch=8)
        drift = drift_of_views(model, pairs, embeddings, batch=8)
        if distributed.is_main():
            folder.mkdir()
            save(embeddings, folder)
            np.save(folder / "views.npy", views)
            np.save(folder / "drift.npy", drift)

    for world in (1, 2):
        assert processes(world, task, tmp_path / str(world)) == [0] * world
    for part in ("ids", "image", "text", "views", "drift"):
        one, two = np.load(tmp_path / "1" / f"{part}.npy"), np.load(tmp_path / "2" / f"{part}.npy")
        assert np.array_equal(one, two)


def test_folders_of_killed_ranks_are_removed(tmp_path, monkeypatch):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kept = [f"lookout-rank-{os.getpid()}-a", "lookout-rank-other", "something"]
    for name in (*kept, f"lookout-rank-{ended.pid}-b"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("RANK", "1")
    try:
        overrides = distributed.hydra_overrides()
    finally:
        logging.disable(logging.NOTSET)
    mine = overrides[0].removeprefix("hydra.run.dir=")
    assert sorted(tmp_path.iterdir()) == sorted([Path(mine), *(tmp_path / name for name in kept)])


TINY = [
    "data.pairs=200",
    "data.test_per_class=2",
    "data.classes=4",
    "scale.attacks.badnets.rate=0.02",
    "train.epochs=1",
    "train.batch_size=100",
    "neighbours.batch_size=100",
    "scale.k=8",
    "scale.wide_k=8",
    "logger=disabled",
    "detector=[tandem,dao]",
    "runtime.workers=1",
    "runtime.threads=1",
]


def run_here(store):
    """All stages in this process."""
    from hydra import compose, initialize_config_dir

    from experiments.pipeline import config as schema
    from experiments.pipeline.evaluation import run
    from experiments.pipeline.runner import Runner

    schema.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        threads = torch.get_num_threads()
        run(Runner.of(compose("config", [*TINY, f"runtime.store={store}"])))
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_torchrun_gives_the_same_scores_and_reports_once(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run_here(one / "store")
    for stage in ("data", "plan", "train"):
        shutil.copytree(one / "store" / stage, two / "store" / stage)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--standalone",
            str(ROOT / "run.py"),
            *TINY,
            "runtime.store=store",
            "hydra.run.dir=runs/${now:%H-%M-%S-%f}",
        ],
        cwd=two,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    output = done.stdout + done.stderr
    assert output.count("samples, 4 poisoned") == 1
    assert output.count("train      reused") == 1
    assert output.count("embed      done") == 1
    (folder,) = (two / "runs").iterdir()  # each process would make its own, to the microsecond
    assert (folder / "results.csv").exists()
    assert sorted(path.name for path in two.iterdir()) == ["runs", "store"]
    files = [f.relative_to(one) for stage in ("score", "embed") for f in one.glob(f"store/{stage}/*/*.npy")]
    assert len(files) == 4 + 3
    for file in files:
        assert np.array_equal(np.load(one / file), np.load(two / file)), file
