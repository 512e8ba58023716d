"""Contrastive training of CLIP on (poisoned) pairs, resumable to the step.

The paper's protocol (section 4): AdamW with weight decay on matrices only, linear warm-up and cosine decay to 0
by step, logit scale clamped to ln 100, mixed precision, open_clip's ClipLoss. Under torchrun the processes
share each global batch; the gradients are those of one process.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attacks.pairs import Pairs
from experiments.clip.model import OpenCLIP, SmallCLIP, TrainedModel
from experiments.runtime import distributed
from experiments.runtime.atomic import whole
from experiments.runtime.progress import Pace, bar
from experiments.runtime.refusals import Diverged
from experiments.training import losses
from experiments.training import stateful_losses as course
from experiments.training.batch_norm import synchronise
from experiments.training.batches import Batch, Schedule, Steps, load
from experiments.training.checkpoint import is_sound
from experiments.training.config import TrainConfig
from experiments.training.losses import Features, gather, sample_losses

__all__ = ["TrainConfig", "train"]

log = logging.getLogger(__name__)
LOOKS = 20  # steps between two looks at a GPU's losses


def train(
    spec: SmallCLIP | OpenCLIP,
    training: TrainConfig,
    pairs: Pairs,
    folder: Path,
    *,
    seed: int,
    texts: Sequence[str] = (),
    device: str = "cpu",
    workers: int = 0,
    evaluate_zero_shot: Callable[[TrainedModel], Mapping[str, Any]] | None = None,
    on_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    checkpoint_seconds: float = 20.0,
    log_every: int = 0,
) -> TrainedModel:
    """Train on all of `pairs` and save the model, its history and per-sample losses into `folder`.

    texts: further texts that the vocabulary must cover (zero-shot prompts).  evaluate_zero_shot(model) -> measures
    of an epoch, such as zero-shot accuracy; on_epoch receives them.  log_every: steps between two log lines of the
    progress; 0: none.  Files: weights.safetensors, model.json, history.jsonl, losses.npy (n, epochs; the
    contrastive loss of each sample within its batch).  A checkpoint in `folder` is continued from, with the same
    result as an uninterrupted run.

    Raises Diverged at the first step whose loss is not finite.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = spec.build([*pairs.captions, *texts])
    run = Trainer(model, training, pairs, folder, seed, device)
    run.resume()
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []):
        run.loop(workers, evaluate_zero_shot, on_epoch, checkpoint_seconds, log_every)
    model.clip.eval()
    if distributed.is_main():
        model.save(folder)
        np.save(folder / "losses.npy", run.filled_losses())
        for file in folder.glob("checkpoint.*"):
            file.unlink()
    return model


class Trainer:
    """The moving parts of one training: model, optimiser, losses so far, the next step."""

    def __init__(
        self, model: TrainedModel, training: TrainConfig, pairs: Pairs, folder: Path, seed: int, device: str
    ) -> None:
        world = distributed.world_size()
        if training.batch_size > len(pairs):
            raise ValueError(
                f"train.batch_size must not exceed the number of pairs ({len(pairs)}), got {training.batch_size}"
            )
        if training.batch_size % world:
            raise ValueError(
                f"train.batch_size must be a multiple of the number of processes ({world}), "
                f"got {training.batch_size}"
            )
        if training.accumulate > training.batch_size // world:
            raise ValueError(
                f"train.accumulate must not exceed the pairs of a process ({training.batch_size // world}), "
                f"got {training.accumulate}"
            )
        self.model, self.training, self.pairs, self.folder = model, training, pairs, folder
        self.device, self.seed = device, seed
        self.objective = training.objective
        if self.objective.bias:
            model.add_bias(*losses.SigLIPLoss.start)
        model.clip.output_dict = True  # type: ignore[assignment]
        model.clip.to(device)
        if world > 1 and training.sync_batch_norm:
            synchronise(model.clip, device)
        self.half = training.resolved_precision(device) == "bfloat16"
        self.schedule = Schedule(len(pairs), training.batch_size, training.epochs, seed)
        self.optimiser = training.optimiser(model.clip)
        self.course = course.start(self.objective, len(pairs), self.schedule.steps_per_epoch, seed)
        self.losses = torch.full((training.epochs, len(pairs)), math.nan)
        self.history: list[dict[str, Any]] = []
        self.step = 0
        self.step_losses: list[Tensor] = []  # of this epoch
        self._sound = 0  # of them, known to be finite
        self._waiting: list[tuple[int, Tensor, Tensor]] = []  # losses that are still on the device

    def resume(self) -> None:
        file = self.folder / "checkpoint.pt"
        if not distributed.broadcast(distributed.is_main() and is_sound(file)):
            return
        state = torch.load(file, map_location=self.device, weights_only=True)
        self.model.clip.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.losses[: len(state["losses"])] = state["losses"].cpu()
        self.history, self.step_losses = json.loads(state["history"]), list(state["step_losses"])
        self.step = state["step"]
        self.course.load(state.get("course", {}))
        log.info("train: resuming at step %d of %d", self.step, self.schedule.steps)

    def checkpoint(self) -> None:
        self._note_losses()
        if not distributed.is_main():
            return
        begun = -(-self.step // self.schedule.steps_per_epoch)
        state = {
            "model": self.model.clip.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "losses": self.losses[:begun].clone(),
            "history": json.dumps(self.history),
            "step_losses": torch.stack(self.step_losses) if self.step_losses else torch.empty(0),
            "step": self.step,
            "course": self.course.state(),
        }
        with whole(self.folder / "checkpoint.pt") as temporary:
            torch.save(state, temporary)

    def loop(
        self,
        workers: int,
        evaluate_zero_shot: Callable[[TrainedModel], Mapping[str, Any]] | None,
        on_epoch: Callable[[Mapping[str, Any]], None] | None,
        checkpoint_seconds: float,
        log_every: int = 0,
    ) -> None:
        network = self._network()
        # Texts are cut into tokens once, or by the processes that load the images.
        early = workers == 0 and not self.objective.views
        table = self.model.tokenizer(list(self.pairs.captions)) if early else None  # (n, context)
        steps = self.steps(early)
        saved, pause = time.monotonic(), checkpoint_seconds
        pace = Pace(self.schedule.steps, log_every, self.step)
        with bar(self.schedule.steps, "train", "step", initial=self.step) as shown:
            for batch in pace.timed(load(steps, self.step, workers, pin=self.device.startswith("cuda"))):
                if table is not None:
                    batch = batch._replace(tokens=table[batch.rows[_mine()]])
                if self.step % self.schedule.steps_per_epoch == 0:
                    self.course.on_epoch_start(
                        self.step // self.schedule.steps_per_epoch, self.model, self.pairs, workers
                    )
                self.train_step(network, batch)
                shown.update(1)
                epoch_ends = self.step % self.schedule.steps_per_epoch == 0
                saves = epoch_ends or time.monotonic() - saved > pause
                self._refuse_divergence(now=saves or pace.due(self.step))
                if pace.due(self.step):
                    pace.log(self.step, self.training.batch_size, self._measures())
                if epoch_ends:
                    self._end_epoch(evaluate_zero_shot, on_epoch)
                if saves:
                    begin = time.monotonic()
                    self.checkpoint()
                    saved = time.monotonic()
                    if checkpoint_seconds > 0:  # 0: after every step; otherwise at most a twentieth of the time
                        pause = max(checkpoint_seconds, 20 * (saved - begin))

    def steps(self, early: bool) -> Steps:
        """The batches to come; without tokens if `early`, as they exist already."""
        tokenise = None if early else self.model.tokenizer
        return Steps(self.pairs, self.schedule, self.training.augment, tokenise, self.objective.views)

    def _network(self) -> nn.Module:
        network = self.model.clip
        if self.training.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        if distributed.world_size() > 1:
            return nn.parallel.DistributedDataParallel(network)
        return network

    def train_step(self, network: nn.Module, batch: Batch) -> None:
        """Forward, backward and update with one global batch."""
        training, epoch = self.training, self.step // self.schedule.steps_per_epoch
        for group in self.optimiser.param_groups:
            rate = training.learning_rate(self.step, self.schedule.steps_per_epoch)
            group["lr"] = rate * self.course.lr_scale(epoch)
        network.train()
        self.optimiser.zero_grad(set_to_none=True)
        loss, features = self._backward(network, batch)
        if training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.clip.parameters(), training.clip_norm)
        self.optimiser.step()
        with torch.no_grad():
            self.model.clip.logit_scale.clamp_(0, math.log(100))  # type: ignore[union-attr, operator]
            own = sample_losses(features)
        self._waiting.append((epoch, batch.rows[: batch.new], own[: batch.new]))
        self.step_losses.append(loss.detach())
        self.step += 1
        if len(self._waiting) >= 100:
            self._note_losses()

    def _refuse_divergence(self, now: bool) -> None:
        """Diverged at the first step whose loss is not finite. A GPU is made to wait for the answer only every
        `LOOKS` steps, or `now`."""
        last = len(self.step_losses)
        if not now and self.device.startswith("cuda") and last - self._sound < LOOKS:
            return
        for place, loss in enumerate(torch.stack(self.step_losses[self._sound :]).tolist(), start=self._sound):
            if math.isfinite(loss):
                continue
            step = self.step - last + place  # of the training, from 0
            rate = self.training.learning_rate(step, self.schedule.steps_per_epoch)
            rate *= self.course.lr_scale(step // self.schedule.steps_per_epoch)
            raise Diverged(
                f"training diverged: the loss is {loss} at step {step + 1} of {self.schedule.steps}, at a learning "
                f"rate of {rate:.3g}; lower train.lr={self.training.lr:g}, or set train.clip_norm"
            )
        self._sound = last

    def _measures(self) -> dict[str, str]:
        """Of the last step, as they are logged."""
        scale = self.model.clip.logit_scale
        return {
            "epoch": f"{self.step / self.schedule.steps_per_epoch:.2f}",
            "loss": f"{float(self.step_losses[-1]):.4f}",
            "lr": f"{self.optimiser.param_groups[0]['lr']:.3g}",
            "logit scale": f"{float(scale.detach().exp()):.1f}",  # type: ignore[operator, arg-type]
        }

    def _backward(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Features]:
        """Leave the global batch's gradient in the parameters; its loss and its features, in global order."""
        parts = _parts(batch, self.training.accumulate)
        if len(parts) == 1:
            whole = gather(self._features(network, batch, 0))
            loss = self.course(whole, batch.rows, self.step)
            loss.backward()
            return loss, whole
        plain = network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network
        with torch.no_grad(), _untouched_statistics(self.model.clip):
            pieces = [self._features(plain, part, index) for index, part in enumerate(parts)]
        rows = {name: torch.cat([piece.rows()[name] for piece in pieces]) for name in pieces[0].rows()}
        kept = Features(scale=pieces[0].scale, bias=pieces[0].bias, **rows).each(
            lambda part: part.detach().clone().requires_grad_()
        )
        whole = gather(kept)
        loss = self.course(whole, batch.rows, self.step)
        loss.backward()
        begin = 0
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            alone = network is not plain and not last
            with network.no_sync() if alone else nullcontext():  # type: ignore[operator, union-attr]
                again, end = self._features(network, part, index), begin + len(part.images)
                # Its gradient is that of the loss: each feature times the loss's gradient in it.
                pull = sum(
                    (piece * _gradient(getattr(kept, name))[begin:end]).sum()
                    for name, piece in again.rows().items()
                )
                if last:
                    pull = pull + again.scale * _gradient(kept.scale)
                    if again.bias is not None and kept.bias is not None:
                        pull = pull + (again.bias * _gradient(kept.bias)).sum()
                pull.sum().backward()  # type: ignore[union-attr]
            begin = end
        return loss, whole

    def _features(self, network: nn.Module, part: Batch, index: int) -> Features:
        """This process's unit-length features of one part of its share of a batch."""
        assert part.tokens is not None
        images, tokens = [part.images], [part.tokens]
        if part.image_views is not None and part.token_views is not None:
            images, tokens = [*images, part.image_views], [*tokens, part.token_views]
        x = self.model.standardise(self.model.pixels(torch.cat(images))).contiguous(
            memory_format=torch.channels_last
        )
        # Dropout and the like follow from the step, so that they are the same after a resume and in both passes.
        stream = [self.seed, self.step, index, distributed.rank()]
        torch.manual_seed(int(np.random.SeedSequence(stream).generate_state(1, np.uint64)[0] >> 1))
        kind = "cuda" if self.device.startswith("cuda") else "cpu"
        with torch.autocast(kind, torch.bfloat16) if self.half else nullcontext():
            out = network(x, torch.cat(tokens).to(self.device, non_blocking=True))
        image, text = out["image_features"].float(), out["text_features"].float()
        scale, bias = out["logit_scale"], out.get("logit_bias")
        if len(images) == 1:
            return Features(image, text, scale, bias)
        (image, image_view), (text, text_view) = image.chunk(2), text.chunk(2)
        return Features(image, text, scale, bias, image_view, text_view)

    def _note_losses(self) -> None:
        for epoch, rows, values in self._waiting:
            self.losses[epoch, rows] = values.cpu()
        self._waiting.clear()

    def _end_epoch(
        self,
        evaluate_zero_shot: Callable[[TrainedModel], Mapping[str, Any]] | None,
        on_epoch: Callable[[Mapping[str, Any]], None] | None,
    ) -> None:
        mean = float(torch.stack(self.step_losses).mean())
        self.step_losses, self._sound = [], 0
        if not distributed.is_main():
            return
        epoch = self.step // self.schedule.steps_per_epoch
        self.model.clip.eval()
        measures = {"epoch": epoch, "loss": round(mean, 4)}
        if evaluate_zero_shot is not None:
            measures |= evaluate_zero_shot(self.model)
        self.history.append(measures)
        (self.folder / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in self.history))
        log.info("train: %s", "  ".join(f"{name} {value}" for name, value in measures.items()))
        if on_epoch is not None:
            on_epoch(measures)

    def filled_losses(self) -> np.ndarray:
        """(n, epochs), every entry filled."""
        self._note_losses()
        values = self.losses.T.contiguous().numpy()
        if not np.isfinite(values).all():
            raise RuntimeError(f"{int((~np.isfinite(values)).sum())} training losses are missing or not finite")
        return values


def _mine() -> slice:
    return slice(distributed.rank(), None, distributed.world_size())


def _parts(batch: Batch, count: int) -> list[Batch]:
    """This process's share of a batch in `count` parts, or as many as its rows allow."""
    size = -(-len(batch.images) // count)
    begins = range(0, len(batch.images), size)
    return [
        Batch(batch.rows, batch.new, *(None if part is None else part[begin : begin + size] for part in batch[2:]))
        for begin in begins
    ]


def _gradient(part: Tensor) -> Tensor:
    """Of what the loss does not depend on, such as a bias in a softmax: zero."""
    return torch.zeros_like(part) if part.grad is None else part.grad


@contextmanager
def _untouched_statistics(network: nn.Module) -> Iterator[None]:
    """Batch normalisation normalises as in training, but its running statistics stay."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
